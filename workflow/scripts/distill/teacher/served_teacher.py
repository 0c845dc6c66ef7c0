"""A served teacher: its signal comes from a vLLM server of the job's own, or from any server with `prompt_logprobs`.

vLLM gives `topk` by the log-probabilities of given tokens, and `hidden` by the states behind its last layer; final norm
and head are applied here. What a server says is never trusted: of every batch, the first record's signal is compared
with a second request, for `hidden` with one that asks for log-probabilities.
"""

import argparse
import fcntl
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distill.common.errors import InputError
from distill.generation.engine import CONCURRENCY, ENGINES
from distill.generation.options import COMPARED_TOP
from distill.generation.sampling import Sampling
from distill.generation.scoring_server import ServedTokens
from distill.generation.token_client import Position, TokenReply, TokenRequest
from distill.generation.token_engine import TokenEngine
from distill.generation.vllm_engine import VllmSource, build_server
from distill.models.chat import ChatTemplate
from distill.models.example_table import Example
from distill.models.final_layers import FinalLayers
from distill.models.load import load_config, select_device, select_dtype
from distill.models.rope import check_lengths
from distill.teacher.signal_teacher import LEAST_LOG, LIKELY, TOLERANCE, Options, read_head

logger = logging.getLogger(__name__)

RECORDS_TOGETHER = {"hidden": 64, "topk": 256}  # hidden states lie on the disk until they are read

MEAN_TOLERANCE = 0.1  # of log-probabilities; 16-bit logits between 16 and 32 are rounded by up to 0.0625

Buckets = dict[int, float]  # log-probabilities by token
Pair = tuple[list[float], list[float]]  # of the same tokens, and of all others together at the end


class ServedTeacher:
    """A served teacher that computes signals.

    Args:
        options: options of compute_signal.py by name.
        chat: the teacher's chat template.
        vocabulary: size of the tokenizer's vocabulary.

    Raises:
        InputError: the engine cannot compute this signal.
    """

    def __init__(self, options: Options, chat: ChatTemplate, vocabulary: int):
        check_kind(options)
        self.options, self.vocabulary = options, vocabulary
        self.kind, self.top_k = options["kind"], options["top_k"] or 0
        self.final: FinalLayers | None = None
        # The next run removes what a killed one has left there, see `remove_unused` of compute_signal.py.
        self.folder = Path(options["out"] if "out" in options else options["signal"]).absolute() / "data/states"
        self.server = self.make_server()
        self.engine = TokenEngine(self.server)

    def make_server(self) -> VllmSource | ServedTokens:
        """Return the server, which starts with the first request."""
        args = argparse.Namespace(**self.options)
        sampling = Sampling()  # nothing is generated
        if not ENGINES[self.options["engine"]].starts_vllm:
            args.__dict__ |= {name: getattr(sampling, name) for name in sampling.digest_parts()}
            return ServedTokens(args, self.options["concurrency"] or CONCURRENCY["openai"])
        settings: dict[str, Any] = {"top_logprobs": max(self.top_k, COMPARED_TOP)}
        if self.kind == "hidden":
            dtype = select_dtype(self.options["dtype"], select_device(self.options["device"]))
            self.final = FinalLayers(self.options["model"], dtype)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            settings |= {"layers": self.final.layers, "folder": self.folder}
        return build_server(args, sampling, **settings)

    @cached_property
    def config(self) -> Any:
        """The model's configuration; None if only the server has it."""
        return load_config(self.options["model"]) if ENGINES[self.options["engine"]].loads_weights else None

    @property
    def batch_size(self) -> int:
        """Records that are asked for at a time."""
        return RECORDS_TOGETHER[self.kind]

    def check_lengths(self, lengths: Sequence[int]) -> None:
        """Check the numbers of tokens of all records; see `distill.models.rope.check_lengths`."""
        if self.config is not None:
            check_lengths(self.config, lengths, "the teacher")
        if isinstance(self.server, VllmSource):
            self.server.check_room(lengths)

    def read_head(self) -> dict[str, Tensor]:
        """Return the head as a linear layer; see `distill.teacher.signal_teacher.read_head`."""
        final = self.get_final()
        return read_head(final.head, torch.device("cpu"), final.dtype)

    def get_final(self) -> FinalLayers:
        """Return the layers behind the hidden states."""
        if self.final is None:
            raise ValueError(f"signal {self.kind} has no hidden states")
        return self.final

    def read_peaks(self) -> dict[str, int]:
        """Return 0 for each figure: the model is in the server's processes."""
        return {"peak_memory_mb": 0, "peak_reserved_mb": 0}

    def close(self) -> None:
        """Take down a server of the job's own."""
        if isinstance(self.server, VllmSource):
            self.server.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- Signals ----

    def compute(self, examples: Sequence[Example]) -> list[dict[str, Tensor]]:
        """Return the signal of each example, on the CPU.

        Raises:
            InputError: the server's replies are not those of the model.
        """
        found = self.read(examples)
        if examples:
            self.check_first(examples[0], found[0])
        return found

    def read(self, examples: Sequence[Example]) -> list[dict[str, Tensor]]:
        """Ask for the signal of each example."""
        if self.kind == "topk":
            replies = self.ask([make_request(at, one, self.top_k) for at, one in enumerate(examples)])
            for example, reply in zip(examples, replies, strict=True):
                self.check_vocabulary(example, reply)
            found = [make_topk(reply.positions) for reply in replies]
        else:
            replies = self.engine.read_tokens([make_request(at, one, 0) for at, one in enumerate(examples)])
            found = [self.read_states(reply, one) for reply, one in zip(replies, examples, strict=True)]
        completions = [torch.tensor(one["completion"], dtype=torch.int32) for one in examples]
        return [one | {"completion": ids} for one, ids in zip(found, completions, strict=True)]

    def ask(self, requests: Sequence[TokenRequest]) -> list[TokenReply]:
        """Ask for log-probabilities; a server that extracts hidden states writes them for these requests, too."""
        replies = self.engine.read_tokens(requests)
        for reply in replies:
            if reply.hidden_states:
                with finished_states(reply.hidden_states):
                    pass  # nobody reads them
        return replies

    def read_states(self, reply: TokenReply, example: Example) -> dict[str, Tensor]:
        """Return the hidden states that predict a completion, behind the final norm; their file is removed."""
        tensors = take_states(reply.hidden_states)
        tokens = [*example["prompt"], *example["completion"]]
        if tensors["token_ids"].tolist() != tokens:
            raise InputError(f"{reply.hidden_states}: expected the states of the requested tokens, found others")
        states = tensors["hidden_states"].reshape(len(tokens), -1)[len(example["prompt"]) - 1 : -1]
        return {"hidden": self.get_final().normalize(states).bfloat16()}

    # ---- Checks ----

    def check_vocabulary(self, example: Example, reply: TokenReply) -> None:
        """Check that no padding of the model's vocabulary is among the most likely tokens.

        Raises:
            InputError: an id is beyond the tokenizer's vocabulary; its probability would have to go to the others.
        """
        largest = max(index for position in reply.positions for index in position.top)
        if largest >= self.vocabulary:
            raise InputError(
                f"uid {example['uid']}: expected token ids below {self.vocabulary}, the size of the tokenizer, among "
                f"the {self.top_k} most likely, found {largest}: lower top_k, or use signal hidden"
            )

    def check_first(self, example: Example, found: dict[str, Tensor]) -> None:
        """Compare a signal with a second request.

        Raises:
            InputError: they differ by more than rounding.
        """
        pairs = self.compare_positions(example, found)
        divergence, mean = measure_divergence(pairs), measure_difference(pairs)
        logger.info(
            "one record against a second request: divergence %.3g nats per token, mean difference of a likely "
            "token's log-probability %.3g",
            divergence,
            mean,
        )
        if not (divergence <= TOLERANCE and mean <= MEAN_TOLERANCE):
            cause = (
                "the final norm, the head or what follows it are not those of the served model (an adapter may change "
                "them); use signal topk, or engine transformers"
                if self.kind == "hidden"
                else "the server's log-probabilities depend on something else than the tokens"
            )
            raise InputError(
                f"uid {example['uid']}: expected the same distribution from two requests, found one that diverges by "
                f"{divergence:.3g} nats per token (rounding explains {TOLERANCE}), with log-probabilities that differ "
                f"by {mean:.3g} on average (rounding explains {MEAN_TOLERANCE}): {cause}"
            )

    def compare(self, example: Example, cached: dict[str, Tensor]) -> tuple[float, float]:
        """Compare a signal with a new request for log-probabilities, over its tokens and all others together.

        Args:
            example: a record as the teacher reads it.
            cached: the record's tensors.

        Returns:
            The divergence of the signal from the server's distribution in nats per token, and the largest difference
            of a log-probability among tokens that are likely in either.
        """
        pairs = self.compare_positions(example, cached)
        return measure_divergence(pairs), max(list_differences(pairs), default=0.0)

    @torch.inference_mode()
    def compare_positions(self, example: Example, cached: dict[str, Tensor]) -> list[Pair]:
        """Return the log-probabilities of each position by a new request and by a signal, see `Pair`."""
        top = self.top_k if self.kind == "topk" else COMPARED_TOP
        (reply,) = self.ask([make_request(0, example, top)])
        pairs = []
        for live, stored in zip((one.top for one in reply.positions), self.list_buckets(cached, reply), strict=True):
            least = min(stored.values())  # the most that a token can have that is not among the stored ones
            pairs.append((close_buckets(list(live.values())), close_buckets([stored.get(one, least) for one in live])))
        return pairs

    def list_buckets(self, cached: dict[str, Tensor], reply: TokenReply) -> list[Buckets]:
        """Return the stored log-probabilities of each position: of the k tokens, or of those of a reply."""
        if self.kind == "topk":
            pairs = zip(cached["ids"].tolist(), cached["logprobs"].tolist(), strict=True)
            return [dict(zip(ids, values, strict=True)) for ids, values in pairs]
        logprobs = self.get_final().project(cached["hidden"]).log_softmax(-1)  # of padding, too, as the server's
        return [
            {index: row[index].item() for index in position.top}
            for row, position in zip(logprobs, reply.positions, strict=True)
        ]


def check_kind(options: Options) -> None:
    """Check that the engine of the options computes their signal.

    Raises:
        InputError: it does not; says what to do.
    """
    name = options["engine"]
    engine = ENGINES[name].configure(options.get("tokenizer"))
    if options["kind"] not in engine.signals:
        raise InputError(f"--kind: expected {' | '.join(engine.signals) or 'none'} with --engine {name}, found "
                         f"{options['kind']}")  # fmt: skip
    if options["kind"] != "topk" or engine.has_all_logits:
        return
    if options["tail_samples"]:
        raise InputError(
            f"--tail-samples: expected none with --engine {name}, whose server gives the most likely tokens alone, "
            f"found {options['tail_samples']}; use a larger --top-k"
        )
    if options["temperatures"] != [1.0]:
        raise InputError(
            f"--temperatures: expected 1 with --engine {name}, whose server gives log-probabilities at temperature 1 "
            f"alone, found {', '.join(map(str, options['temperatures']))}; use signal hidden or temperature 1"
        )


def make_request(number: int, example: Example, top: int) -> TokenRequest:
    """Return the request for a record."""
    tokens = [*example["prompt"], *example["completion"]]
    return TokenRequest(number, example["uid"], tokens, len(example["prompt"]), top)


def make_topk(positions: Sequence[Position]) -> dict[str, Tensor]:
    """Return the tensors of a `topk` signal at temperature 1; see `top_log_probabilities`."""
    ids = torch.tensor([list(position.top) for position in positions], dtype=torch.int32)
    values = torch.tensor([list(position.top.values()) for position in positions], dtype=torch.float64)
    # Ranks are the server's; of equal numbers, and rounded ones above 0, the order may be another.
    logprobs, order = values.clamp(max=0).sort(dim=-1, descending=True, stable=True)
    tail = (1 - logprobs.exp().sum(-1, keepdim=True)).clamp(min=0).log()
    return {
        "ids": ids.gather(1, order),
        "logprobs": logprobs.clamp(min=LEAST_LOG).half(),
        "log_tail": tail.clamp(min=LEAST_LOG).half(),
    }


def close_buckets(logprobs: Sequence[float]) -> list[float]:
    """Return log-probabilities with that of all other tokens behind them."""
    rest = 1 - sum(map(math.exp, logprobs))
    return [*logprobs, math.log(max(rest, 1e-9))]


def list_differences(pairs: Sequence[Pair]) -> list[float]:
    """Return the absolute differences of the log-probabilities of tokens that are likely in either distribution."""
    return [abs(a - b) for p, q in pairs for a, b in zip(p[:-1], q[:-1], strict=True) if max(a, b) > LIKELY]


def measure_difference(pairs: Sequence[Pair]) -> float:
    """Return the mean of `list_differences`; infinite without likely tokens."""
    found = list_differences(pairs)
    return sum(found) / len(found) if found else math.inf


def measure_divergence(pairs: Sequence[Pair]) -> float:
    """Return the Kullback-Leibler divergence of the second distributions from the first in nats per token."""
    terms = [math.exp(a) * (a - b) for p, q in pairs for a, b in zip(p, q, strict=True)]
    return sum(terms) / len(pairs)


def take_states(path: str | None) -> dict[str, Tensor]:
    """Read the file of a request's hidden states, once the server has written it, and remove it.

    Raises:
        InputError: the server names none, or the file cannot be read.
    """
    if path is None:
        raise InputError("kv_transfer_params: expected the path of the hidden states, found none")
    with finished_states(path):
        return load_file(path)


@contextmanager
def finished_states(path: str) -> Iterator[None]:
    """Wait until the server has written a file of hidden states, and remove it afterwards.

    Raises:
        InputError: the file cannot be read.
    """
    lock = Path(f"{path}.lock")
    try:
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # the server holds an exclusive lock until the file is whole
            yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: expected the hidden states of a request ({error})") from error
    Path(path).unlink()
    lock.unlink()
