"""How likely the teacher finds the answers of the other models; what was read once is not read again."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.common.digest import digest_of
from distill.common.errors import InputError
from distill.common.journal import Journal, read_journal
from distill.common.progress import Progress
from distill.generation.engine import ScoringEngine

logger = logging.getLogger(__name__)

FIELDS = ("nll", "nll_tokens", "nll_hits")
BATCHES_AT_ONCE = 8  # answers are read longest first within so many batches, and then kept


def get_key(prediction: dict[str, Any]) -> str:
    """Digest of what the teacher reads: prompt and answer, and whether the answer has an end."""
    return digest_of([prediction[name] for name in ("system", "prompt", "prediction", "finish_reason")])


def parse_judged(record: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return the key and the scores of a journal's record; None if one is missing."""
    try:
        return record["key"], {name: record[name] for name in FIELDS}
    except KeyError:
        return None


def find_models(paths: Sequence[Path]) -> dict[str, Path]:
    """Files of predictions by the models' names, of `…/{model}/{category}.predictions.jsonl`.

    Raises:
        InputError: two files of one model.
    """
    models: dict[str, Path] = {}
    for path in paths:
        if (other := models.setdefault(path.parent.name, path)) != path:
            raise InputError(f"{path}: the model is that of {other}")
    return models


def judge(
    predictions: dict[str, list[dict[str, Any]]], engine: ScoringEngine, journal: Path
) -> Iterator[dict[str, Any]]:
    """Yield `model`, `category`, `uid` of each prediction with `nll`, `nll_tokens` and `nll_hits` of its answer.

    Args:
        predictions: of `load_predictions`, by model.
        engine: the teacher's; it loads the model only if an answer has to be scored.
        journal: folder of what was judged before.
    """
    path = journal / f"{engine.fingerprint()}.jsonl"
    kept = dict(read_journal(path, parse_judged, "a judged answer"))
    asked = {get_key(one): one for records in predictions.values() for one in records}
    missing = [(key, one) for key, one in asked.items() if key not in kept]
    logger.info(
        "%d different answers: %d judged before, %d to judge", len(asked), len(asked) - len(missing), len(missing)
    )
    if missing:
        kept |= read_answers(missing, engine, path)
    for model, records in predictions.items():
        for one in records:
            yield {"model": model, "category": one["category"], "uid": one["uid"], **kept[get_key(one)]}


def read_answers(
    missing: Sequence[tuple[str, dict[str, Any]]], engine: ScoringEngine, path: Path
) -> dict[str, dict[str, Any]]:
    """Have the teacher read answers, some batches at a time, each kept before the next."""
    from distill.evaluation.predict import measure_likelihoods

    size = BATCHES_AT_ONCE * engine.score_batch_size
    found: dict[str, dict[str, Any]] = {}
    progress = Progress(len(missing), "judged answers")
    for start in range(0, len(missing), size):
        part = missing[start : start + size]
        tests = [one | {"is_whole": one["finish_reason"] != "length"} for _, one in part]
        judged = measure_likelihoods(tests, "prediction", engine)
        with Journal(path) as kept:
            kept.append({"key": key} | one for (key, _), one in zip(part, judged, strict=True))
        found |= {key: one for (key, _), one in zip(part, judged, strict=True)}
        progress.add(len(part), sum(one["nll_tokens"] for one in judged))
    progress.close()
    return found
