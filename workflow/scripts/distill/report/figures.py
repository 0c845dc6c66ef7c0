"""Figures of the report: training curves, scores with intervals, predicted against true values.

All are grids of small panels, a row a category.
"""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from distill.common.errors import InputError, format_problem
from distill.common.files import read_jsonl
from distill.common.names import TEACHER
from distill.evaluation.score_table import Score, is_base, order_categories, order_models
from distill.report.panels import (
    DASHED,
    GREY,
    add_legend,
    choose_colors,
    drawing,
    make_metric_panels,
    make_panels,
    wrap_name,
)

LOG_RATIO = 30  # from this ratio of largest to smallest on, a positive metric stands on a log axis
TICK_STEPS = (1, 2, 2.5, 5, 10)
MANY_POINTS = 1000  # from here on, a panel's points are drawn as an image inside the SVG

CURVES = {
    "loss": "training loss",
    "ce": "cross-entropy term",
    "kd": "distillation term",
    "val_loss": "validation loss",
}
METRICS = {
    "coverage": "coverage (share)",
    "mae": "MAE",
    "ic": "IC (Spearman)",
    "direction_accuracy": "direction accuracy",
    "ppl": "perplexity",
    "agreement": "agreement (share)",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rougeL": "ROUGE-L F1",
    "fdistill_coverage": "fdistill coverage\n(perplexity)",
    "fdistill_likelihood": "fdistill likelihood\n(perplexity)",
    "length_ratio": "length (ratio)",
    "repetition": "repetition (share)",
    "distinct1": "distinct-1 (share)",
    "distinct2": "distinct-2 (share)",
}
RANGES = {"coverage": 1, "direction_accuracy": 1, "agreement": 1, "bleu": 100, "chrf": 100, "rougeL": 100}


FROM_0 = ("mae", "length_ratio", "repetition", "distinct1", "distinct2")
LOG_METRICS = ("mae", "ppl", "fdistill_coverage", "fdistill_likelihood")


class TrainingLog(NamedTuple):
    """One training run: whose it is, and its logged lines in the order of steps."""

    student: str
    category: str
    lines: list[dict[str, Any]]


class Values(NamedTuple):
    """One panel of `draw_values`: predicted and true values, shape (n,) each, and how many answers gave none."""

    model: str
    category: str
    predicted: NDArray[np.float64]
    true: NDArray[np.float64]
    unusable: int
    records: int


def read_training_log(path: str | PathLike[str]) -> TrainingLog:
    """A training log; student and category come from its path `…/{student}/{category}/training_log.jsonl`.

    A run that was killed and resumed has logged some steps twice: the later line counts.

    Raises:
        InputError: no line at all, or one without a step.
    """
    lines: dict[tuple[int, bool], dict[str, Any]] = {}
    for number, line in read_jsonl(path):
        if not isinstance(line.get("step"), int):
            raise InputError(format_problem(path, number, "step", "a whole number", line.get("step")))
        lines[line["step"], "val_loss" in line] = line
    if not lines:
        raise InputError(f"{path}: expected at least one logged step, found an empty file")
    folder = Path(path).absolute().parent
    return TrainingLog(folder.parent.name, folder.name, [lines[key] for key in sorted(lines)])


def pick_curve(log: TrainingLog, field: str) -> tuple[list[int], list[float]]:
    """Steps and values of one logged field, without the lines that do not have it."""
    points = [(line["step"], line[field]) for line in log.lines if line.get(field) is not None]
    return [step for step, _ in points], [value for _, value in points]


def draw_training(logs: Sequence[TrainingLog], path: str | PathLike[str]) -> None:
    """Loss, its two terms and the validation loss against the step: a row a category, a line a student."""
    categories = order_categories(log.category for log in logs)
    students = order_models(log.student for log in logs)
    colors = choose_colors(students)
    fields = [field for field in CURVES if any(pick_curve(log, field)[0] for log in logs)]
    if not fields:
        raise InputError(f"no curve to draw: expected at least one of {', '.join(CURVES)} in the logs")
    with drawing(path) as figure:
        panels = make_panels(figure, categories, len(fields), (2.5, 1.55), sharey="col", sharex=True)
        for log in logs:
            for axes, field in zip(panels[categories.index(log.category)], fields, strict=True):
                steps, values = pick_curve(log, field)
                marker = "o" if field == "val_loss" or len(steps) < 3 else ""
                axes.plot(steps, values, color=colors[log.student], marker=marker, markersize=3)
        for axes, field in zip(panels[0], fields, strict=True):
            axes.set_title(f"{CURVES[field]}\n(nats per token)")
            if all(min(pick_curve(log, field)[1], default=0) >= 0 for log in logs):
                axes.set_ylim(bottom=0)  # shared by the whole column
        for axes in panels[-1]:
            axes.set_xlabel("optimizer step")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=TICK_STEPS, integer=True))
        add_legend(figure, [Line2D([], [], color=colors[student]) for student in students], students)


def choose_metrics(found: Iterable[str]) -> list[str]:
    """What is drawn of the metrics that there are, in order; fdistill's likelihood is the perplexity over again."""
    names = set(found)
    twice = {"fdistill_likelihood"} if "ppl" in names else set()
    return [metric for metric in METRICS if metric in names - twice]


def draw_scores(scores: Sequence[Score], path: str | PathLike[str]) -> None:
    """Every metric with its 95 % interval: a row a category, a column a metric, a line of the panel a model."""
    categories = order_categories(score.category for score in scores)
    models = order_models(score.model for score in scores)
    metrics = choose_metrics(score.metric for score in scores)
    if not metrics:
        raise InputError(f"no metric to draw: expected at least one of {', '.join(METRICS)}")
    colors = choose_colors(models)
    by_key = {(score.category, score.metric, score.model): score for score in scores}
    with drawing(path) as figure:
        panels = make_metric_panels(figure, categories, metrics, 0.5 + 0.15 * len(models))
        for row, category in zip(panels, categories, strict=True):
            for axes, metric in zip(row, metrics, strict=True):
                cells = {model: by_key.get((category, metric, model)) for model in models}
                draw_score_panel(axes, cells, colors)
        panels[0, 0].set_yticks(range(len(models)), labels=models)
        panels[0, 0].set_ylim(len(models) - 0.4, -0.6)
        for column, metric in zip(panels.T, metrics, strict=True):
            column[0].set_title(METRICS[metric])
            set_score_scale(column[0], metric, [score for score in scores if score.metric == metric])


def draw_score_panel(axes: Axes, cells: Mapping[str, Score | None], colors: Mapping[str, str]) -> None:
    """One metric in one category; the teacher's figure also stands as a dashed line, a base model as a ring."""
    for place, (model, score) in enumerate(cells.items()):
        if score is None or score.value is None:
            axes.annotate("undefined" if score else "none", (0.02, place), xycoords=("axes fraction", "data"),
                          color=GREY, fontsize=6, va="center")  # fmt: skip
            continue
        if model == TEACHER:
            axes.axvline(score.value, color=GREY, linewidth=0.8, linestyle=DASHED, zorder=1)
        if score.ci_low is not None and score.ci_high is not None:
            axes.plot([score.ci_low, score.ci_high], [place, place], color=colors[model], linewidth=1.4)
        face = "white" if is_base(model, cells) else colors[model]
        axes.plot([score.value], [place], "o", color=colors[model], markerfacecolor=face, markersize=4)
    axes.grid(axis="y", visible=False)


def set_score_scale(axes: Axes, metric: str, scores: Sequence[Score]) -> None:
    """From 0 to the end of the metric's range where it has one; a log axis where errors or perplexities lie far apart.

    The axis is shared by the metric's whole column.
    """
    values = [score.value for score in scores if score.value is not None]
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=TICK_STEPS))
    if metric in RANGES:
        end = RANGES[metric]
        axes.set_xlim(-0.04 * end, 1.04 * end)
        axes.set_xticks([0, end / 2, end])
    elif metric in LOG_METRICS and values and 0 < LOG_RATIO * min(values) < max(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}" if value >= 1e5 else f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif metric in FROM_0:
        axes.set_xlim(left=0)


def read_values(path: str | PathLike[str]) -> Values:
    """Values of one predictions file; model and category come from `…/{model}/{category}.predictions.jsonl`.

    Raises:
        InputError: a record without the fields `usable`, `label` and `parsed_value`.
    """
    pairs, unusable, records = [], 0, 0
    for line, record in read_jsonl(path):
        for field in ("usable", "label", "parsed_value"):
            if field not in record:
                raise InputError(f"{path}:{line}: {field}: expected in a prediction, but the field is missing")
        records += 1
        unusable += not record["usable"]
        if record["usable"] and record["label"] is not None and record["parsed_value"] is not None:
            pairs.append((record["parsed_value"], record["label"]))
    predicted, true = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    folder, category = Path(path).absolute().parent, Path(path).name.removesuffix(".predictions.jsonl")
    return Values(folder.name, category, predicted, true, unusable, records)


def draw_values(panels_values: Sequence[Values], path: str | PathLike[str], name: str = "value") -> None:
    """Predicted against true value: a row a category, a column a model, all axes alike within a category.

    Args:
        panels_values: a panel each.
        path: of the figure.
        name: what the values are, for the axes' labels.
    """
    categories = order_categories(values.category for values in panels_values)
    models = order_models(values.model for values in panels_values)
    colors = choose_colors(models)
    with drawing(path) as figure:
        panels = make_panels(figure, categories, len(models), (1.65, 2.1), sharex="row", sharey="row")
        for axes in panels[:, 1:].flat:
            axes.set_axis_off()  # until there is something to draw
        for category, row in zip(categories, panels, strict=True):
            chosen = [values for values in panels_values if values.category == category]
            limit = choose_limit(chosen)
            row[0].set(xlim=(-limit, limit), ylim=(-limit, limit))
            for values in chosen:
                draw_value_panel(row[models.index(values.model)], values, limit, colors[values.model])
        for axes, model in zip(panels[0], models, strict=True):
            axes.set_title(f"{wrap_name(model, 24)}\n{axes.get_title()}", fontsize=7)
        figure.supxlabel(f"true {name}", fontsize=8)
        figure.supylabel(f"predicted {name}", fontsize=8)


def choose_limit(row: Sequence[Values]) -> float:
    """Half the width of a category's axes: 1.3 times the largest true value but for the outermost 1 %."""
    sizes = np.abs(np.concatenate([values.true for values in row]))
    limit = 1.3 * float(np.quantile(sizes, 0.99)) if len(sizes) else 0.0
    return limit if limit > 0 else 1.0


def draw_value_panel(axes: Axes, values: Values, limit: float, color: str) -> None:
    """One model in one category; points beyond the axes stand on their edge as triangles and are counted."""
    axes.set_axis_on()
    axes.set_aspect("equal")
    axes.plot([-limit, limit], [-limit, limit], color=GREY, linewidth=0.8, linestyle=DASHED)
    outside = np.maximum(np.abs(values.predicted), np.abs(values.true)) > limit
    for chosen, marker, size in ((~outside, "o", 8), (outside, "^", 16)):
        x, y = (np.clip(side[chosen], -limit, limit) for side in (values.true, values.predicted))
        many = len(x) >= MANY_POINTS
        axes.scatter(x, y, s=size, c=color, marker=marker, alpha=0.55, lw=0, clip_on=False, rasterized=many)
    error = f"{np.abs(values.predicted - values.true).mean():#.3g}" if len(values.true) else "undefined"
    beyond = f", {outside.sum()} beyond" if outside.any() else ""
    counts = f"{values.unusable} of {values.records} unusable{beyond}"
    axes.set_title(f"n {len(values.true)}, MAE {error}\n{counts}", fontsize=7)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=4, steps=TICK_STEPS, symmetric=True))
