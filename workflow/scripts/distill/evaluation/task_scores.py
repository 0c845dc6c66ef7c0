"""Scores of benchmark tasks with confidence intervals over their documents, and their paired comparison.

The scores are those of lm-evaluation-harness. A score that is the mean over documents also has an interval, and is
compared document by document.
"""

import json
import logging
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from distill.common.errors import InputError
from distill.common.files import read_jsonl, write_atomically
from distill.common.replicas import list_replicas
from distill.evaluation.bootstrap import Floats, Resampled, Statistic, make_estimate, resample_models
from distill.evaluation.compare import Pair, compare_means
from distill.evaluation.comparison_table import Comparison
from distill.evaluation.formulas import weighted_mean
from distill.evaluation.options import ScoringOptions
from distill.evaluation.scores import arrange_scores
from distill.evaluation.seed_means import average_all, check_replicas

logger = logging.getLogger(__name__)

SUFFIX = ".tasks.npz"
NOT_METRICS = ("name", "alias", "sample_len", "sample_count")
NO_FILTER = "none"
ROUNDING = 1e-9  # relative


class TaskScore(NamedTuple):
    """One metric of a task, or of a group of tasks.

    Attributes:
        value: score of lm-evaluation-harness.
        n: number of documents.
        documents: numbers and digests of the documents; none if the score is not the mean over them.
        values: score of each document, (documents,).
    """

    value: float
    n: int
    documents: list[str]
    values: Floats

    def build(self) -> Statistic:
        """The score as a function of weights of the documents."""
        return Statistic(partial(weighted_mean, values=self.values), self.n)


TaskScores = dict[str, TaskScore]  # by metric, `TASK/METRIC` or `TASK/METRIC/FILTER`


# ---- Reading a run ----


def read_run(documents: str | PathLike[str], results: str | PathLike[str]) -> TaskScores:
    """Read the scores of a model: those of each group, and of each task outside a group that has scores.

    Args:
        documents: documents.jsonl from run_tasks.py.
        results: lm_eval.json from run_tasks.py.

    Raises:
        InputError: a file is not from run_tasks.py.
    """
    scored: dict[tuple[str, str], list[dict[str, Any]]] = {}
    try:
        found = json.loads(Path(results).read_text(encoding="utf-8"))
        for _, row in read_jsonl(documents):
            scored.setdefault((row["task"], row["filter"]), []).append(row)
        scores: TaskScores = {}
        for name, values in select_reported(found).items():
            members = list(list_members(name, found["group_subtasks"]))
            n = sum(found["n-samples"][member]["effective"] for member in members)
            for key, value in values.items():
                metric, _, chosen = key.partition(",")
                rows = [row for member in members for row in scored.get((member, chosen), [])]
                title = f"{name}/{metric}" if chosen == NO_FILTER else f"{name}/{metric}/{chosen}"
                scores[title] = make_score(value, n, metric, rows)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{documents}, {results}: expected files from run_tasks.py ({error!r})") from error
    return scores


def select_reported(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The metrics of what is reported, by name and by `METRIC,FILTER`: groups, and tasks outside of them."""
    metrics = {name: pick_metrics(values) for name, values in (found["results"] | found.get("groups", {})).items()}
    groups = [name for name in found["group_subtasks"] if metrics.get(name)]
    inside = {member for name in groups for member in list_below(name, found["group_subtasks"])}
    return {name: values for name, values in metrics.items() if values and name not in inside}


def pick_metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """The metrics among the values of a task, without standard errors."""
    return {
        name: float(value)
        for name, value in values.items()
        if "," in name and not name.partition(",")[0].endswith("_stderr") and isinstance(value, int | float)
    }


def list_below(name: str, subtasks: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield all groups and tasks in a group."""
    for member in subtasks.get(name, []):
        yield member
        yield from list_below(member, subtasks)


def list_members(name: str, subtasks: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the tasks in a group, or the task itself."""
    if not subtasks.get(name):
        yield name
    for member in subtasks.get(name, []):
        yield from list_members(member, subtasks)


def make_score(value: float, n: int, metric: str, rows: Sequence[dict[str, Any]]) -> TaskScore:
    """A score with those of its documents, if it is their mean: others, such as a perplexity, have the value alone."""
    given = [row["values"].get(metric) for row in rows]
    values = np.array([math.nan if one is None else one for one in given], dtype=np.float64)
    is_mean = len(rows) == n > 0 and math.isclose(float(values.mean()), value, rel_tol=ROUNDING, abs_tol=ROUNDING)
    if not is_mean:
        return TaskScore(value, n, [], np.empty(0))
    return TaskScore(value, n, [f"{row['task']}:{row['document']}" for row in rows], values)


# ---- Scores ----


def check_same_documents(scores: Mapping[str, TaskScore], metric: str) -> None:
    """Check that a metric of several models rests on the same documents.

    Raises:
        InputError: it does not; names two models.
    """
    first, *others = scores
    for other in others:
        if scores[other].documents != scores[first].documents or scores[other].n != scores[first].n:
            raise InputError(
                f"{metric}: expected the same documents for {first} and {other}, found others: the task has changed "
                "between the two runs; remove their documents.jsonl to run it again"
            )


def resample_tasks(models: Mapping[str, TaskScores], options: ScoringOptions) -> dict[str, dict[str, Resampled]]:
    """Every score by model and metric, with its values in resamples of the documents, the same for all models.

    Scores that are no mean over documents are left out.

    Args:
        models: scores by model.
        options: bootstrap.

    Raises:
        InputError: two models have other documents.
    """
    resampled: dict[str, dict[str, Resampled]] = {model: {} for model in models}
    for metric in dict.fromkeys(name for scores in models.values() for name in scores):
        own = {model: scores[metric] for model, scores in models.items() if metric in scores}
        check_same_documents(own, metric)
        built = {model: {metric: score.build()} for model, score in own.items() if score.documents}
        if not built:
            continue
        n = len(own[next(iter(built))].documents)
        for model, values in resample_models(built, n, options.bootstrap, options.seed).items():
            resampled[model] |= values
    return resampled


def score_tasks(replicas: Mapping[str, TaskScores], options: ScoringOptions) -> dict[str, Any]:
    """The content of a metrics file: the scores of a model, or their means over the replicas of a student.

    Args:
        replicas: scores by model; several are replicas of one student.
        options: bootstrap.

    Raises:
        InputError: the models are not replicas of one student, or have other documents.
    """
    if len(replicas) > 1:
        check_replicas(list(replicas))
    resampled = resample_tasks(replicas, options)
    estimates = {}
    shared = [name for name in next(iter(replicas.values())) if all(name in other for other in replicas.values())]
    for name in shared:  # without an interval, unless they are means over documents
        values = [scores[name].value for scores in replicas.values()]
        n = min(scores[name].n for scores in replicas.values())
        estimates[name] = make_estimate(Resampled(float(np.mean(values)), np.empty(0), n))
    means = average_all(list(resampled.values()))
    estimates |= {name: make_estimate(mean.score) for name, mean in means.items()}
    content = arrange_scores(estimates, {"documents": sum(estimate.n for estimate in estimates.values())})
    if len(replicas) == 1:
        return content
    spreads = {name: np.std([one[name].value for one in replicas.values()], ddof=1) for name in shared}
    return content | {
        "seeds": len(replicas),
        "seed_sd": {name: float(spread) for name, spread in spreads.items()},
        "replicas": list(replicas),
    }


def compare_tasks(
    models: Mapping[str, TaskScores], category: str, pairs: Sequence[Pair], options: ScoringOptions
) -> list[Comparison]:
    """Compare pairs of models of a category on each task; pairs whose models were not evaluated are left out.

    Args:
        models: scores by model.
        category: the category.
        pairs: (model, other); the name of a student stands for all of its replicas.
        options: bootstrap.

    Raises:
        InputError: two models have other documents.
    """
    resampled = resample_tasks(models, options)
    rows = []
    for pair in pairs:
        sides = [list_replicas(name, list(models)) for name in pair]
        if not all(sides):
            continue
        means, others = (average_all([resampled[replica] for replica in side]) for side in sides)
        rows += [
            compare_means(category, pair, metric, means[metric], others[metric]) for metric in means if metric in others
        ]
    return rows


# ---- Files ----


def write_task_scores(path: str | PathLike[str], scores: TaskScores) -> None:
    """Write scores with those of their documents as NumPy arrays; equal scores make equal files."""
    arrays: dict[str, Any] = {"metrics": np.array(list(scores), dtype=str)}
    for place, score in enumerate(scores.values()):
        arrays[f"{place}.score"] = np.array([score.value, score.n])
        arrays[f"{place}.documents"] = np.array(score.documents, dtype=str)
        arrays[f"{place}.values"] = score.values
    with write_atomically(path) as file:
        np.savez_compressed(cast(Any, file).buffer, allow_pickle=False, **arrays)


def read_task_scores(path: str | PathLike[str]) -> TaskScores:
    """Read what `write_task_scores` wrote.

    Raises:
        InputError: the file is another one.
    """
    try:
        with np.load(path) as file:
            return {
                name: TaskScore(
                    float(file[f"{place}.score"][0]),
                    int(file[f"{place}.score"][1]),
                    file[f"{place}.documents"].tolist(),
                    file[f"{place}.values"],
                )
                for place, name in enumerate(file["metrics"].tolist())
            }
    except (AttributeError, EOFError, KeyError, TypeError, ValueError, IndexError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: expected a file from score_tasks.py ({error!r})") from error
