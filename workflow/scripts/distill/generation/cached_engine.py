"""Asking an engine: what the cache holds is taken from there, and what is new is kept as it comes."""

import logging
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from distill.common.progress import Progress
from distill.generation.answer_cache import CacheWriter, read_cache
from distill.generation.engine import Engine
from distill.generation.sampling import Generated, Request
from distill.records.answer_format import parse_answer

logger = logging.getLogger(__name__)


class Ledger:
    """Answers as they come in: from the cache first, then from the engine into cache and counts.

    Args:
        folder: of this engine's answers.
        answer_key: of the answer contract; None accepts every text.
        uids: prompts that may be asked.
        what: the answers' name in the log.
    """

    def __init__(
        self, engine: Engine, folder: Path, answer_key: str | None, uids: Container[str], what: str = "teacher answers"
    ):
        self.engine, self.folder, self.answer_key, self.what = engine, folder, answer_key, what
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
        logger.info("%d answers: %d in the cache, %d to ask for", len(requests), kept, len(missing))
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
        return [parse_answer(one["raw_output"], self.answer_key).problem is None for one in self.take(uid)]

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
