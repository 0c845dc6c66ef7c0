"""The engine `vllm`: a server that the job starts when the first answer is needed, and takes down at its end."""

import argparse
import atexit
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from distill.common.digest import digest_of
from distill.common.errors import InputError
from distill.common.options import read_options
from distill.generation.engine import CONCURRENCY, CompletionScore, read_source
from distill.generation.generate import stop_ids
from distill.generation.options import VllmOptions, get_result_arguments
from distill.generation.sampling import Request, Sampling
from distill.generation.server_errors import Problem
from distill.generation.shared_server import SharedServer
from distill.generation.token_client import TokenClient
from distill.generation.token_engine import TokenEngine
from distill.generation.transformers_engine import ModelSource
from distill.generation.vllm_server import BASE_NAME, VllmServer, build_command
from distill.models.chat import ChatTemplate
from distill.models.load import load_generation_config, select_device, select_dtype
from distill.models.rope import context_length

ADAPTER_NAME = "adapter"
SHARED_CONCURRENCY = 64  # requests that a job keeps open at a server that other jobs ask, too
LOCAL_RETRIES = 2  # a server on the same machine that does not answer will not come back


class LocalClient(TokenClient):
    """Asks the job's own server; when it has ended, the error says why, and nothing is tried again.

    Args:
        server: the running server.
        chat, stops, model, sampling, settings: see `TokenClient`.
    """

    is_local = True

    def __init__(
        self,
        server: VllmServer | SharedServer,
        chat: ChatTemplate,
        stops: Sequence[int],
        model: str,
        sampling: Sampling,
        **settings: Any,
    ):
        super().__init__(chat, stops, model, sampling, server.base_url, request_retries=LOCAL_RETRIES, **settings)
        self.server = server

    async def send(self, client: Any, request: Any) -> Any:
        """Send one request; see `TokenClient.send`."""
        _, found = await super().send(client, request)
        if isinstance(found, Problem) and found.is_server_fault and not self.server.is_running():
            found = Problem(self.server.explain(), is_fatal=True)
        return request, found


class VllmSource:
    """A model that vLLM serves to this job.

    Args:
        source: the model, its adapter and its data type.
        sampling: sampling settings.
        options: of the server.
        log: file that gets what the server prints.
        concurrency, timeout: see `EngineOptions`.
        top_logprobs: most likely tokens that a request may ask for at each position.
        layers: number of the model's layers, to extract the hidden states behind the last one.
        folder: where the hidden states are written.
        shared: file of serve_teacher.py, whose server is used; None starts one.

    Raises:
        InputError: the program is not installed, the adapter cannot be served, or the weights are to be quantized by
            bitsandbytes.
    """

    def __init__(
        self,
        source: ModelSource,
        sampling: Sampling,
        options: VllmOptions,
        log: Path,
        concurrency: int,
        timeout: float,
        top_logprobs: int = 1,
        layers: int | None = None,
        folder: Path | None = None,
        shared: Path | None = None,
    ):
        if source.quantization != "none":
            raise InputError(
                f"--quantization: expected none with engine vllm, found {source.quantization}; vLLM's own quantization "
                "is in teacher.vllm.arguments (quantization: fp8, bitsandbytes, …)"
            )
        self.source, self.sampling, self.options = source, sampling, options
        self.timeout = timeout
        device = select_device(source.device)
        # More than vLLM computes at a time would wait in its queue, and count towards the time-out.
        most = options.arguments.get("max_num_seqs", concurrency)
        limits = [concurrency, most if isinstance(most, int) else concurrency]
        limits += [SHARED_CONCURRENCY] if shared else []
        limits += [1] if source.adapter and device.type == "cpu" else []  # see `build_command`
        self.concurrency = min(limits)
        self.server: VllmServer | SharedServer
        if shared is not None:
            arguments = get_result_arguments(options.arguments)
            needs_states = layers is not None
            self.server = SharedServer(shared, source.model, source.dtype, source.adapter, arguments, needs_states)
        else:
            dtype = str(select_dtype(source.dtype, device)).removeprefix("torch.")
            adapters = {ADAPTER_NAME: source.adapter} if source.adapter else {}
            command = build_command(source.model, dtype, device.type, adapters, options, top_logprobs, layers, folder)
            self.server = VllmServer(command, options, log, device.type)
        self.client: TokenClient | None = None

    @cached_property
    def chat(self) -> ChatTemplate:
        """The model's chat template."""
        return self.source.load_chat()

    def connect(self) -> TokenClient:
        """Return the client of the running server, which is started first if need be."""
        if self.client is None:
            atexit.register(self.server.stop)
            self.server.start()
            stops = stop_ids(load_generation_config(self.source.model), self.chat.tokenizer)
            name = ADAPTER_NAME if self.source.adapter else BASE_NAME
            if isinstance(self.server, SharedServer):
                name = self.server.name
            self.client = LocalClient(self.server, self.chat, stops, name, self.sampling, timeout=self.timeout)
        return self.client

    def find_limit(self) -> int | None:
        """Return the most tokens of prompt and answer together; None if neither model nor arguments give a limit."""
        named = self.options.arguments.get("max_model_len")
        known = [context_length(self.source.config()), named if isinstance(named, int) else None]
        return min((limit for limit in known if limit), default=None)

    def check_room(self, lengths: Sequence[int]) -> None:
        """Check that records fit, with the one token that vLLM always generates.

        Raises:
            InputError: a record is too long.
        """
        limit, longest = self.find_limit(), max(lengths, default=0)
        if limit and longest >= limit:
            raise InputError(
                f"expected records of at most {limit - 1} tokens, since vLLM generates one more than it reads and has "
                f"a context of {limit} (max_model_len), found one of {longest}: raise max_model_len in "
                "teacher.vllm.arguments, or lower max_length"
            )

    def close(self) -> None:
        """Take the server down."""
        self.server.stop()
        self.client = None


class VllmEngine(TokenEngine):
    """Generates answers and scores completions with a vLLM server of the job's own.

    Args:
        server: the served model.
    """

    server: VllmSource

    @property
    def depends_on_batch(self) -> bool:
        """False: as with transformers, rounding alone depends on the batch."""
        return False

    def describe(self) -> dict[str, Any]:
        """Return model, adapter, dtype, vLLM's arguments, sampling and settings of the chat template by name."""
        source, chat = self.server.source, self.chat
        template = {name: part for name, part in chat.digest_parts().items() if name != "template"}
        arguments = get_result_arguments(self.server.options.arguments)
        sampling = self.server.sampling.digest_parts()
        return {"engine": "vllm", **source.describe(), **arguments, **template, "sampling": sampling}

    def fingerprint(self) -> str:
        """Return a digest of weights, adapter, chat template, dtype, vLLM's arguments and sampling."""
        model = self.server.source.fingerprint(self.chat, self.server.sampling)
        return digest_of(
            {"engine": "vllm", "model": model, "arguments": get_result_arguments(self.server.options.arguments)}
        )

    def score_fingerprint(self) -> str:
        """Return the same digest."""
        return self.fingerprint()

    def find_overlong(self, requests: Sequence[Request]) -> dict[str, str]:
        """Return prompts that leave no room for a token of answer: uid to a text with length and limit."""
        limit = self.server.find_limit()
        lengths = {r.uid: len(self.chat.encode_conversation(r.conversation)) for r in requests}
        return {uid: f"{n} tokens, the limit is {limit - 1}" for uid, n in lengths.items() if limit and n >= limit}

    def score_completions(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> list[CompletionScore]:
        """Score completions given their prompts; see `TokenEngine.score_completions`.

        Raises:
            InputError: also if a completion is longer than vLLM's context.
        """
        self.server.check_room([len(one) + len(other) for one, other in zip(prompts, completions, strict=True)])
        return super().score_completions(prompts, completions)

    def peak_memory_mb(self) -> int:
        """Return 0: the model is in vLLM's processes, which take `gpu_memory_utilization` of the GPU."""
        return 0

    def peak_reserved_mb(self) -> int:
        """Return 0; see `peak_memory_mb`."""
        return 0


def find_log(out: Path) -> Path:
    """Return the log of a job's server by the job's output, in the folder logs/vllm.

    >>> str(find_log(Path("output/evaluation/teacher/banks.predictions.jsonl")))
    'logs/vllm/teacher-banks.predictions.log'
    """
    return Path("logs/vllm") / f"{out.parent.name}-{out.stem}.log"


def build_server(args: argparse.Namespace, sampling: Sampling, **settings: Any) -> VllmSource:
    """Return the server of a parsed command line; `settings` are those of `VllmSource`."""
    options = read_options(args, VllmOptions, "vllm_")
    concurrency = args.concurrency or CONCURRENCY["vllm"]
    settings |= {"log": find_log(Path(args.out)), "concurrency": concurrency, "timeout": args.timeout}
    return VllmSource(read_source(args), sampling, options, shared=args.vllm_server, **settings)
