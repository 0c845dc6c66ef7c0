"""The teacher's likelihood of the answers of all models."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.common.errors import InputError
from distill.evaluation.likelihood import measure_likelihoods
from distill.generation.engine import ScoringEngine


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
    """Judge the predictions of all models; see `measure_likelihoods`.

    Args:
        predictions: records from `load_predictions`, by model.
        engine: the teacher's engine; it loads the model only if the journal lacks an answer.
        journal: folder with the journals of judged answers, one per teacher.

    Yields:
        `model`, `category` and `uid` of each prediction, with `nll` (nats), `nll_tokens` and `nll_hits` of its answer.
    """
    pairs = [(model, one) for model, records in predictions.items() for one in records]
    answers = [one | {"answer": one["prediction"], "is_whole": one["finish_reason"] != "length"} for _, one in pairs]
    likelihoods = measure_likelihoods(engine, answers, journal, "models' answers", is_teacher=True)
    for (model, one), likelihood in zip(pairs, likelihoods, strict=True):
        yield {"model": model, "category": one["category"], "uid": one["uid"], **likelihood}
