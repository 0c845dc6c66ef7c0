"""Likelihoods of given answers: the sums that perplexity is computed from. A journal keeps them, so that a rerun
resumes, and a changed record alone is measured again."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.common.digest import digest_of
from distill.common.journal import Journal, read_journal
from distill.common.progress import Progress
from distill.generation.engine import CompletionScore, ScoringEngine
from distill.records.conversations import pick_context, read_conversation, read_teacher_conversation

logger = logging.getLogger(__name__)

FIELDS = ("nll", "nll_tokens", "nll_hits")
BATCHES_PER_PART = 8  # what a kill costs at most

Likelihood = dict[str, Any]


def answer_likelihoods(
    engine: ScoringEngine, records: Sequence[dict[str, Any]], is_teacher: bool = False
) -> list[CompletionScore]:
    """Score each record's `answer` given its prompt.

    The tokens are those of the completion, including the end of its turn; prompt tokens do not count.

    Args:
        engine: gives the likelihoods.
        records: each with `answer`, `is_whole` (see `ChatTemplate.encode_completion`) and the fields of a prompt, see
            `records/conversations.py`.
        is_teacher: whether the model is the teacher, which sees `teacher_prompt`.
    """
    chat = engine.chat
    read = read_teacher_conversation if is_teacher else read_conversation
    prompts = [chat.encode_conversation(read(record)) for record in records]
    completions = [chat.encode_completion(record["answer"], record["is_whole"]) for record in records]
    for completion in completions:
        chat.check_ids(completion)
    chat.log_control_tokens([record["answer"]] for record in records)
    return engine.score_completions(prompts, completions)


def get_key(record: dict[str, Any]) -> str:
    """Digest of what determines an answer's likelihood besides the model: prompt, answer, whether it is truncated."""
    parts = [record["system"], record["prompt"], record["answer"], "stop" if record["is_whole"] else "length"]
    context = pick_context(record)
    return digest_of([*parts, context] if context else parts)


def parse_likelihood(record: dict[str, Any]) -> tuple[str, Likelihood] | None:
    """Return the key and the likelihood of a journal's record; None if a field is missing."""
    try:
        return record["key"], {name: record[name] for name in FIELDS}
    except KeyError:
        return None


def measure_likelihoods(
    engine: ScoringEngine, records: Sequence[dict[str, Any]], journal: Path, what: str, is_teacher: bool = False
) -> list[Likelihood]:
    """Return the likelihood of each record's `answer`; equal answers to the same prompt are measured once.

    Args:
        engine: gives the likelihoods; it loads the model only if the journal lacks an answer.
        records: see `answer_likelihoods`.
        journal: folder of the journals of likelihoods, one per model.
        what: name of the answers in the log, such as `references`.
        is_teacher: see `answer_likelihoods`.

    Returns:
        `nll` (nats), `nll_tokens` and `nll_hits` (tokens that the model ranks first) of each answer.
    """
    path = journal / f"{engine.score_fingerprint()}.jsonl"
    keys = [get_key(record) for record in records]
    distinct = dict(zip(keys, records, strict=True))
    known = {key: one for key, one in read_journal(path, parse_likelihood, "a likelihood") if key in distinct}
    missing = [key for key in distinct if key not in known]
    text = "likelihood of %d distinct %s: %d in the journal, %d to measure"
    logger.info(text, len(distinct), what, len(known), len(missing))
    if missing:
        known |= measure_missing(engine, {key: distinct[key] for key in missing}, path, what, len(known), is_teacher)
    return [known[key] for key in keys]


def measure_missing(
    engine: ScoringEngine, missing: dict[str, dict[str, Any]], path: Path, what: str, known: int, is_teacher: bool
) -> dict[str, Likelihood]:
    """Measure answers in parts; each part is on disk before the next one starts.

    Args:
        engine, what, is_teacher: see `measure_likelihoods`.
        missing: records by key.
        path: the journal.
        known: number of answers in the journal.

    Returns:
        The likelihoods by key.
    """
    size = BATCHES_PER_PART * engine.score_batch_size  # loads the model, before the clock starts
    lengths = {key: len(record["prompt"]) + len(record["answer"]) for key, record in missing.items()}
    keys = sorted(missing, key=lambda key: -lengths[key])  # a batch that exceeds the memory comes first
    measured: dict[str, Likelihood] = {}
    work, memory = sum(lengths.values()), engine.peak_reserved_mb
    progress = Progress(known + len(keys), f"likelihoods of {what}", done=known, work=work, memory=memory)
    for start in range(0, len(keys), size):
        part = keys[start : start + size]
        scores = answer_likelihoods(engine, [missing[key] for key in part], is_teacher)
        found = [dict(zip(FIELDS, (score.nll, score.tokens, score.hits), strict=True)) for score in scores]
        new = dict(zip(part, found, strict=True))
        with Journal(path) as file:
            file.append({"key": key} | likelihood for key, likelihood in new.items())
        measured |= new
        progress.add(len(part), sum(score.tokens for score in scores), sum(lengths[key] for key in part))
    progress.close()
    return measured
