"""The teacher's likelihood of the answers of all models; a journal keeps judged answers, so that a rerun resumes."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.common.digest import digest_of
from distill.common.errors import InputError
from distill.common.journal import Journal, read_journal
from distill.common.progress import Progress
from distill.generation.engine import ScoringEngine
from distill.records.conversations import pick_context

logger = logging.getLogger(__name__)

FIELDS = ("nll", "nll_tokens", "nll_hits")
BATCHES_PER_PART = 8  # answers are sorted by length within a part, then scored and written to the journal


def get_key(prediction: dict[str, Any]) -> str:
    """Digest of everything that determines the likelihood: prompt, answer, and whether the answer is truncated."""
    parts = [prediction[name] for name in ("system", "prompt", "prediction", "finish_reason")]
    context = pick_context(prediction)
    return digest_of([*parts, context] if context else parts)


def parse_judged(record: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return the key and the scores of a journal's record; None if one is missing."""
    try:
        return record["key"], {name: record[name] for name in FIELDS}
    except KeyError:
        return None


def find_models(paths: Sequence[Path]) -> dict[str, Path]:
    """Sort prediction files `…/{model}/{category}.predictions.jsonl` by model.

    Raises:
        InputError: two files belong to one model.
    """
    models: dict[str, Path] = {}
    for path in paths:
        if (other := models.setdefault(path.parent.name, path)) != path:
            raise InputError(f"{path}: expected one file per model, found {other} before")
    return models


def judge(
    predictions: dict[str, list[dict[str, Any]]], engine: ScoringEngine, journal: Path
) -> Iterator[dict[str, Any]]:
    """Judge the predictions of all models; equal answers to the same prompt are judged once.

    Args:
        predictions: records from `load_predictions`, by model.
        engine: the teacher's engine; it loads the model only if the journal lacks an answer.
        journal: folder with the journals of judged answers, one per teacher.

    Yields:
        `model`, `category` and `uid` of each prediction, with `nll` (nats), `nll_tokens` and `nll_hits` of its answer.
    """
    path = journal / f"{engine.score_fingerprint()}.jsonl"
    judged = dict(read_journal(path, parse_judged, "a judged answer"))
    distinct = {get_key(one): one for records in predictions.values() for one in records}
    missing = [(key, one) for key, one in distinct.items() if key not in judged]
    known = len(distinct) - len(missing)
    logger.info("%d distinct answers: %d in the journal, %d to judge", len(distinct), known, len(missing))
    if missing:
        judged |= judge_missing(missing, engine, path)
    for model, records in predictions.items():
        for one in records:
            yield {"model": model, "category": one["category"], "uid": one["uid"], **judged[get_key(one)]}


def judge_missing(
    missing: Sequence[tuple[str, dict[str, Any]]], engine: ScoringEngine, path: Path
) -> dict[str, dict[str, Any]]:
    """Judge answers in parts; each part is on disk before the next one starts.

    Args:
        missing: (key, prediction) of each answer.
        engine: the teacher's engine.
        path: the journal.

    Returns:
        The likelihoods by key.
    """
    from distill.evaluation.predict import measure_likelihoods

    size = BATCHES_PER_PART * engine.score_batch_size
    judged: dict[str, dict[str, Any]] = {}
    progress = Progress(len(missing), "judged answers")
    for start in range(0, len(missing), size):
        part = missing[start : start + size]
        tests = [one | {"is_whole": one["finish_reason"] != "length"} for _, one in part]
        likelihoods = measure_likelihoods(tests, "prediction", engine, is_teacher=True)
        new = {key: likelihood for (key, _), likelihood in zip(part, likelihoods, strict=True)}
        with Journal(path) as file:
            file.append({"key": key} | likelihood for key, likelihood in new.items())
        judged |= new
        progress.add(len(part), sum(likelihood["nll_tokens"] for likelihood in likelihoods))
    progress.close()
    return judged
