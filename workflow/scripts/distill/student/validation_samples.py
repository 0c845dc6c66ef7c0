"""A student's answers to fixed validation prompts while it trains, and whether they run away.

Greedy decoding draws no random numbers and keeps nothing for gradients, so the trained weights are the same with and
without samples.
"""

import heapq
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from distill.common.hashing import hash_uid
from distill.generation.generate import generate_requests
from distill.generation.repetition import NGRAM, count_repeated, split_tokens
from distill.generation.sampling import Sampling, make_request
from distill.models.chat import ChatTemplate
from distill.records.splits import read_chat

logger = logging.getLogger(__name__)

# Answers run away if one of these shares exceeds that of the references by at least this much.
MAX_EXCESS = {"truncated": 0.5, "repetition": 0.3}
SHOWN = 100  # characters of an answer in the console log

Record = dict[str, Any]
Sample = dict[str, Any]


class Shape(NamedTuple):
    """Length and repetition of a set of answers.

    Attributes:
        truncated: share of the answers that reach the maximum length without an end of turn.
        repetition: share of all 4-grams that occurred earlier in the same answer, as `repetition` of the evaluation;
            0 without any 4-gram.
    """

    truncated: float
    repetition: float


class ValidationSamples:
    """Answers a few validation prompts greedily, and compares their shape with that of the references.

    Args:
        records: records of the validation split, see `choose_records`.
        chat: the student's chat template.
        max_new_tokens: maximum length of an answer in tokens; a longer reference counts as truncated, too.
    """

    def __init__(self, records: Sequence[Record], chat: ChatTemplate, max_new_tokens: int):
        self.chat, self.sampling = chat, Sampling(max_new_tokens, temperature=0.0)
        chats = [read_chat(record) for record in records]
        answers = [answer for _, answer in chats]
        self.requests = [make_request(record | fields) for record, (fields, _) in zip(records, chats, strict=True)]
        are_whole = [
            record["finish_reason"] != "length" and len(chat.encode_completion(answer, True)) <= max_new_tokens
            for record, answer in zip(records, answers, strict=True)
        ]
        self.reference = measure_shape(answers, are_whole)

    def answer(self, model: Any, batch_size: int, is_interrupted: Callable[[], bool]) -> list[Sample] | None:
        """The student's answers in the order of the prompts; None if interrupted.

        Args:
            model: the student, in evaluation mode.
            batch_size: answers at a time.
            is_interrupted: asked after every decoding step.

        Returns:
            For each prompt `uid`, `text`, `finished` (whether the turn ended) and `tokens` (their number).
        """
        started = time.monotonic()
        found: dict[str, Sample] = {}
        for ended in generate_requests(model, self.chat, self.requests, self.sampling, batch_size):
            if is_interrupted():
                return None
            for request, one in ended:
                facts = {"text": one.text, "finished": one.finish_reason == "stop", "tokens": one.tokens}
                found[request.uid] = {"uid": request.uid} | facts
        samples = [found[request.uid] for request in self.requests]
        logger.info("answered %d validation prompts in %.1f s", len(samples), time.monotonic() - started)
        for sample in samples:
            end = "" if sample["finished"] else ", truncated"
            logger.info("%s (%d tokens%s): %s", sample["uid"][:8], sample["tokens"], end, shorten(sample["text"]))
        return samples

    def measure(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The fields of a validation line: the shape of answers and references, and whether the answers run away."""
        shape = measure_shape([one["text"] for one in samples], [one["finished"] for one in samples])
        excess = {name: getattr(shape, name) - getattr(self.reference, name) for name in MAX_EXCESS}
        fields = {f"val_{name}": value for name, value in shape._asdict().items()}
        fields |= {f"reference_{name}": value for name, value in self.reference._asdict().items()}
        return fields | {"runs_away": any(excess[name] >= most for name, most in MAX_EXCESS.items())}

    def describe_runaway(self, step: int, fields: dict[str, Any]) -> str:
        """A sentence about answers that run away.

        Args:
            step: the current optimizer step.
            fields: from `measure`.
        """
        shares = {name: f"{value:.0%}" for name, value in fields.items() if name != "runs_away"}
        return (
            f"Step {step}: the student's greedy answers to {len(self.requests)} validation prompts run away: "
            f"{shares['val_truncated']} of them reach {self.sampling.max_new_tokens} tokens without an end of turn "
            f"(references: {shares['reference_truncated']}), and {shares['val_repetition']} of their {NGRAM}-grams are "
            f"repetitions (references: {shares['reference_repetition']})."
        )


def choose_records(records: Iterable[Record], uids: Collection[str], count: int) -> list[Record]:
    """Choose the records with the smallest hash of their uid, which are the same in every training on this split.

    Args:
        records: records of the validation split; of those with the same uid, the first counts. Only the chosen ones
            are kept in memory.
        uids: uids that can be chosen.
        count: maximum number of records.
    """
    first = take_first(records, uids)
    return heapq.nsmallest(count, first, key=lambda record: hash_uid("validation_samples", 0, record["uid"]))


def take_first(records: Iterable[Record], uids: Collection[str]) -> Iterator[Record]:
    """Yield the first record of each uid."""
    waiting = set(uids)
    for record in records:
        if record["uid"] in waiting:
            waiting.remove(record["uid"])
            yield record


def measure_shape(texts: Sequence[str], are_whole: Sequence[bool]) -> Shape:
    """The shape of a set of answers.

    Args:
        texts: the answers.
        are_whole: whether each ended by itself.
    """
    counts = [count_repeated(split_tokens(text)) for text in texts]
    repeated, ngrams = (sum(column) for column in zip(*counts, strict=True))
    return Shape(1 - sum(are_whole) / len(are_whole), repeated / max(ngrams, 1))


def shorten(text: str) -> str:
    """The beginning of a text as a single line."""
    line = repr(text)
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"
