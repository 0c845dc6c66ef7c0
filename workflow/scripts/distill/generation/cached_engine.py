"""An engine with the answer cache in front: cached answers are reused, new ones are stored as they are generated."""

import logging
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from distill.common.disk import check_free
from distill.common.progress import Progress
from distill.common.reporter import Reporter
from distill.generation.answer_cache import CacheWriter, read_cache
from distill.generation.engine import Engine, RefusedError
from distill.generation.sampling import Generated, Request
from distill.records.answer_format import parse_answer

logger = logging.getLogger(__name__)

BYTES_PER_TOKEN = 8  # about 4 of text, in the journal and in the output


class CachedEngine:
    """Answers requests from the cache, or else from an engine, and counts both.

    Args:
        engine: generates what the cache lacks.
        folder: the engine's folder in the cache.
        answer_key: key of the value in an answer's JSON object; None accepts any text.
        uids: prompts that may be requested.
        what: name of the answers in the log.
        refused: `skip` to do without the answers that a server refuses, `error` to stop after all others are stored.
        longest: maximum length of an answer in tokens, for the check of the free disk space; None checks nothing.
        reporter: shows the progress in trackers.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        answer_key: str | None,
        uids: Container[str],
        what: str = "teacher answers",
        refused: str = "error",
        longest: int | None = None,
        reporter: Reporter | None = None,
    ):
        self.longest, self.reporter = longest, reporter
        self.engine, self.folder, self.answer_key, self.what, self.refused = engine, folder, answer_key, what, refused
        self.cached = read_cache(folder, uids)
        self.samples: Counter[str] = Counter()  # requested samples by uid
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0

    def generate(self, requests: Sequence[Request]) -> None:
        """Generate and store the answers that the cache lacks."""
        missing = [request for request in requests if (request.uid, request.sample) not in self.cached]
        cached = len(requests) - len(missing)
        self.counts["from_cache"] += cached
        logger.info("%d answers: %d in the cache, %d to generate", len(requests), cached, len(missing))
        if missing:
            needed = len(missing) * (self.longest or 0) * BYTES_PER_TOKEN
            check_free({self.folder: needed}, f"{len(missing)} {self.what} of up to {self.longest} tokens")
            try:
                self.generate_missing(missing, len(requests))
            except RefusedError as error:
                if self.refused == "error":
                    raise
                logger.warning("%s\nthey are skipped", error)
        self.samples.update(request.uid for request in requests)

    def generate_missing(self, requests: Sequence[Request], total: int) -> None:
        """Generate answers; each one is stored before it is counted."""
        batches = self.engine.generate(requests)  # loads the model, before the clock starts
        progress = Progress(
            total,
            self.what,
            done=total - len(requests),
            memory=self.engine.peak_reserved_mb,
            reporter=self.reporter,
            earlier=self.samples.total(),
        )
        with CacheWriter(self.folder, self.engine.describe()) as writer:
            for batch in batches:
                records = [to_record(request, generated) for request, generated in batch]
                writer.add(records)
                for record in records:
                    self.cached.add(record)
                self.counts["generated"] += len(records)
                tokens = sum(record["generated_tokens"] for record in records)
                self.counts["generated_tokens"] += tokens
                self.counts["prompt_tokens"] += sum(record["prompt_tokens"] for record in records)
                progress.add(len(records), tokens)
        progress.close()
        self.seconds += progress.seconds

    def get_answers(self, uid: str) -> list[dict[str, Any]]:
        """Return a prompt's answers so far, in the order of their samples, without those that the server refused."""
        return [self.cached[uid, sample] for sample in range(self.samples[uid]) if (uid, sample) in self.cached]

    def find_problems(self, uid: str) -> list[str | None]:
        """Return for each of a prompt's answers so far why it is unusable; None if it has the required format."""
        return [parse_answer(one["raw_output"], self.answer_key).problem for one in self.get_answers(uid)]

    def stats(self) -> dict[str, Any]:
        """Return the counts of this run."""
        problems = [self.find_problems(uid) for uid in self.samples]
        counts = Counter(problem for found in problems for problem in found)
        usable = counts.pop(None, 0)
        tokens = self.counts["generated_tokens"]
        names = ("from_cache", "generated", "retried", "generated_tokens", "prompt_tokens")
        return {
            **{name: self.counts[name] for name in names},
            "refused": sum(not found for found in problems),
            "usable": usable,
            "rejected": counts.total(),
            "problems": dict(counts.most_common()),
            "unanswered": sum(None not in found for found in problems),
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(tokens / self.seconds, 1) if self.seconds else 0.0,
            "depends_on_batch": self.engine.depends_on_batch,
            "peak_memory_mb": self.engine.peak_memory_mb() if self.counts["generated"] else 0,
            "peak_reserved_mb": self.engine.peak_reserved_mb() if self.counts["generated"] else 0,
        }


def to_record(request: Request, generated: Generated) -> dict[str, Any]:
    """Return the record of an answer in the cache."""
    return {
        "uid": request.uid,
        "sample": request.sample,
        "raw_output": generated.text,
        "finish_reason": generated.finish_reason,
        "generated_tokens": generated.tokens,
        "prompt_tokens": generated.prompt_tokens,
    }
