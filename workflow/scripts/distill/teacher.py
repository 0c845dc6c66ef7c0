"""The teacher's answers to a category's prompts, asked once and kept record by record."""

import logging
import sys
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from distill.answers import parse_answer
from distill.cache import CacheWriter, read_cache
from distill.errors import InputError
from distill.files import read_jsonl
from distill.progress import Progress
from distill.sampling import Generated, Request

log = logging.getLogger(__name__)

SHOWN = 20  # overlong prompts named in a message
Prompt = dict[str, Any]


class Engine(Protocol):
    """What answers requests."""

    def fingerprint(self) -> str:
        """Digest of everything but the prompt that decides an answer."""

    def describe(self) -> dict[str, Any]:
        """The same in words: names instead of digests."""

    def find_overlong(self, requests: Sequence[Request]) -> dict[str, str]:
        """Prompts that the context has no room for: by uid, their length and the limit in words."""

    def generate(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Generated]]]:
        """Yield answered requests as they are ready, in any order, or none; may stop only by an exception."""

    def peak_memory_mb(self) -> int:
        """The most memory held so far, in MiB."""


@dataclass(frozen=True)
class Asking:
    """How often a prompt is asked, and which answers are kept; names and values as in config/README.md."""

    answer_key: str | None = None
    samples: int = 1
    retries: int = 0
    keep: str = "all"
    overlong: str = "error"


class Ledger:
    """Answers as they come in: from the cache first, then from the engine into cache and counts.

    Args:
        folder: of this engine's answers.
        uids: prompts that may be asked.
        what: the answers' name in the log.
    """

    def __init__(
        self, engine: Engine, folder: Path, asking: Asking, uids: Container[str], what: str = "teacher answers"
    ):
        self.engine, self.folder, self.asking, self.what = engine, folder, asking, what
        self.cached = read_cache(folder, uids)
        self.samples: Counter[str] = Counter()  # by uid, how many were asked for
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0

    def ask(self, requests: Sequence[Request]) -> None:
        """Take what the cache has, generate and keep the rest."""
        missing = [request for request in requests if (request.uid, request.sample) not in self.cached]
        self.counts["from_cache"] += len(requests) - len(missing)
        self.counts["generated"] += len(missing)
        kept = len(requests) - len(missing)
        log.info("%d answers: %d in the cache, %d to ask for", len(requests), kept, len(missing))
        if missing:
            self.generate(missing, len(requests))
        self.samples.update(request.uid for request in requests)

    def generate(self, requests: Sequence[Request], total: int) -> None:
        """Have the engine answer; each answer is on disk before it counts."""
        batches = self.engine.generate(requests)  # a model is loaded here, before the clock starts
        progress = Progress(total, self.what, done=total - len(requests))
        with CacheWriter(self.folder, self.engine.describe()) as writer:
            for batch in batches:
                kept = [to_record(request, generated) for request, generated in batch]
                writer.add(kept)
                for record in kept:
                    self.cached.add(record)
                tokens = sum(record["generated_tokens"] for record in kept)
                self.counts["generated_tokens"] += tokens
                self.counts["prompt_tokens"] += sum(record["prompt_tokens"] for record in kept)
                progress.add(len(kept), tokens)
        progress.close()
        self.seconds += progress.seconds

    def take(self, uid: str) -> list[dict[str, Any]]:
        """A prompt's answers so far, in the order of their samples."""
        return [self.cached[uid, sample] for sample in range(self.samples[uid])]

    def check(self, uid: str) -> list[bool]:
        """Whether each of a prompt's answers so far holds what it must."""
        return [parse_answer(one["raw_output"], self.asking.answer_key).problem is None for one in self.take(uid)]

    def stats(self) -> dict[str, Any]:
        """Counts of this run."""
        usable = [self.check(uid) for uid in self.samples]
        tokens = self.counts["generated_tokens"]
        names = ("from_cache", "generated", "retried", "generated_tokens", "prompt_tokens")
        return {
            **{name: self.counts[name] for name in names},
            "usable": sum(map(sum, usable)),
            "rejected": sum(not one for answers in usable for one in answers),
            "unanswered": sum(not any(answers) for answers in usable),
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(tokens / self.seconds, 1) if self.seconds else 0.0,
            "peak_memory_mb": self.engine.peak_memory_mb() if self.counts["generated"] else 0,
        }


def to_record(request: Request, generated: Generated) -> dict[str, Any]:
    """An answer as the cache keeps it."""
    return {
        "uid": request.uid,
        "sample": request.sample,
        "raw_output": generated.text,
        "finish_reason": generated.finish_reason,
        "generated_tokens": generated.tokens,
        "prompt_tokens": generated.prompt_tokens,
    }


def load_prompts(path: Path) -> list[Prompt]:
    """A file of prompts; what all of them have in common is in memory once.

    Raises:
        InputError: a line is no JSON object; names file and line.
    """
    return [
        {sys.intern(name): sys.intern(value) if name == "system" else value for name, value in record.items()}
        for _, record in read_jsonl(path)
    ]


def drop_overlong(prompts: list[Prompt], ledger: Ledger) -> list[Prompt]:
    """The prompts that the teacher's context has room for, as for each that it has answered before.

    Raises:
        InputError: there are others and `overlong` is `error`; names their ids, lengths and the limit.
    """
    new = [to_request(prompt, 0) for prompt in prompts if (prompt["uid"], 0) not in ledger.cached]
    found = ledger.engine.find_overlong(new) if new else {}
    if not found:
        return prompts
    named = [f"  id {prompt['id']}: {found[prompt['uid']]}" for prompt in prompts if prompt["uid"] in found]
    listed = "\n".join([*named[:SHOWN], f"  and {len(named) - SHOWN} more"] if len(named) > SHOWN else named)
    text = f"{len(named)} of {len(prompts)} prompts are longer than the teacher's context:\n{listed}"
    if ledger.asking.overlong == "error":
        raise InputError(f"{text}\n(teacher.overlong: skip leaves them out)")
    log.warning("%s\nthey are left out", text)
    return [prompt for prompt in prompts if prompt["uid"] not in found]


def to_request(prompt: Prompt, sample: int) -> Request:
    """A prompt's record as a request."""
    return Request(prompt["id"], prompt["uid"], prompt["system"], prompt["prompt"], sample)


def answer_prompts(
    prompts: list[Prompt], engine: Engine, asking: Asking, cache: Path
) -> tuple[Iterator[dict[str, Any]], dict[str, Any]]:
    """The teacher's answer to every prompt, from the cache where it is there.

    Args:
        prompts: each with `id`, `uid`, `system`, `prompt`, `label` and `origin`.
        cache: folder of all teachers' answers.

    Returns:
        Records of teacher_outputs_{category}.jsonl in the prompts' order, made one by one as they are taken (all at
        once would double the memory), and the counts of this run. `usable` and `rejected` count all answers that were
        looked at, kept or not; `retried` those beyond `samples`; `unanswered` prompts without a usable one.

    Raises:
        InputError: prompts that the context has no room for.
    """
    ledger = Ledger(engine, cache / engine.fingerprint(), asking, {prompt["uid"] for prompt in prompts})
    wanted = drop_overlong(prompts, ledger)
    ledger.ask([to_request(prompt, sample) for prompt in wanted for sample in range(asking.samples)])
    for attempt in range(asking.retries):
        again = [prompt for prompt in wanted if not any(ledger.check(prompt["uid"]))]
        if not again:
            break
        ledger.counts["retried"] += len(again)
        ledger.ask([to_request(prompt, asking.samples + attempt) for prompt in again])
    records = (record for prompt in wanted for record in keep_answers(prompt, ledger.take(prompt["uid"]), asking))
    return records, {"prompts": len(prompts), "overlong": len(prompts) - len(wanted), **ledger.stats()}


def keep_answers(prompt: Prompt, answers: list[dict[str, Any]], asking: Asking) -> list[dict[str, Any]]:
    """Output records of a prompt: its usable answers or the one nearest to the label; the first where none is usable.

    Without a label the first usable answer is the best; equally near ones go by sample.
    """
    records = [to_output(prompt, answer, asking.answer_key) for answer in answers]
    usable = [record for record in records if record["usable"]]
    if not usable:
        return records[:1]
    if asking.keep == "best":
        label = prompt["label"]
        return [min(usable, key=lambda record: 0.0 if label is None else abs(record["parsed_value"] - label))]
    return usable


def to_output(prompt: Prompt, answer: dict[str, Any], answer_key: str | None) -> dict[str, Any]:
    """One line of teacher_outputs_{category}.jsonl."""
    parsed = parse_answer(answer["raw_output"], answer_key)
    return {
        "id": prompt["id"],
        "uid": prompt["uid"],
        "sample": answer["sample"],
        "system": prompt["system"],
        "prompt": prompt["prompt"],
        "raw_output": answer["raw_output"],
        "think": parsed.think,
        "answer": parsed.answer,
        "parsed_value": parsed.value,
        "usable": parsed.problem is None,
        "problem": parsed.problem,
        "label": prompt["label"],
        "origin": prompt["origin"],
        "finish_reason": answer["finish_reason"],
        "generated_tokens": answer["generated_tokens"],
    }
