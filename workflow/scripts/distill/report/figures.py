"""Figures of the report: training curves, scores with intervals, predicted against true values.

Each figure is a grid of small panels with a row per category.
"""

import textwrap
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from distill.common.errors import InputError, format_problem
from distill.common.files import read_jsonl
from distill.common.names import TEACHER
from distill.common.replicas import drop_seed, is_replica
from distill.evaluation.metrics import Metric, select_drawn
from distill.evaluation.score_table import Score, is_base_of, order_categories, order_models
from distill.report.panels import (
    DASHED,
    GREY,
    add_legend,
    choose_colors,
    draw_spread,
    drawing,
    make_metric_panels,
    make_panels,
    order_rows,
    set_titles,
    wrap_name,
)

LOG_RATIO = 30  # ratio of largest to smallest score above which a log axis is used
TICK_STEPS = (1, 2, 2.5, 5, 10)
MANY_POINTS = 1000  # from this number on, the points of a panel are an image inside the SVG: the file stays small
NOTE_CHARACTERS, NOTE_LINE = 17, 0.13  # of notes below a figure: characters per inch, height of a line in inches

CURVES = {
    "loss": "training loss",
    "ce": "cross-entropy term",
    "kd": "distillation term",
    "val_loss": "validation loss",
}


class TrainingLog(NamedTuple):
    """The log of one training run, its lines sorted by step."""

    student: str
    category: str
    lines: list[dict[str, Any]]


class Values(NamedTuple):
    """One panel of `draw_values`.

    Attributes:
        model: name of the evaluated model.
        category: name of the category.
        predicted: values of usable answers with a label, (n,).
        true: their labels, (n,).
        unusable: number of unusable answers.
        records: number of all answers.
    """

    model: str
    category: str
    predicted: NDArray[np.float64]
    true: NDArray[np.float64]
    unusable: int
    records: int


def read_training_log(path: str | PathLike[str]) -> TrainingLog:
    """Read a training log; student and category come from its path `…/{student}/{category}/training_log.jsonl`.

    A run that was killed and resumed has logged some steps twice; the later line counts.

    Raises:
        InputError: the log is empty, or a line has no step.
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
    """Steps and values of one logged field; lines without the field are left out."""
    points = [(line["step"], line[field]) for line in log.lines if line.get(field) is not None]
    return [step for step, _ in points], [value for _, value in points]


def list_warnings(logs: Sequence[TrainingLog]) -> dict[str, list[str]]:
    """The trainings, as student and category, that each warning in the logs is about."""
    found: dict[str, list[str]] = {}
    for log in logs:
        for warning in (one for line in log.lines for one in line.get("warnings", [])):
            found.setdefault(warning, []).append(f"{log.student} ({log.category})")
    return found


def add_warnings(figure: Figure, logs: Sequence[TrainingLog]) -> None:
    """Write the warnings of the trainings below all panels; the figure grows by their height."""
    width, height = figure.get_size_inches()
    notes = [f"{', '.join(names)}: {warning}" for warning, names in list_warnings(logs).items()]
    lines = [line for note in notes for line in textwrap.wrap(note, int(width * NOTE_CHARACTERS))]
    if lines:
        figure.set_size_inches(width, height + len(lines) * NOTE_LINE)
        figure.supxlabel("\n".join(lines), fontsize=7, x=0.01, ha="left")


def draw_training(logs: Sequence[TrainingLog], path: str | PathLike[str]) -> None:
    """Draw the loss, its two terms and the validation loss over the steps: a row per category, a line per training.

    The replicas of a student share its colour. The warnings of the logs stand below.
    """
    categories = order_categories(log.category for log in logs)
    trained = order_models(log.student for log in logs)
    students, colors = list(dict.fromkeys(map(drop_seed, trained))), choose_colors(trained)
    fields = [field for field in CURVES if any(pick_curve(log, field)[0] for log in logs)]
    if not fields:
        raise InputError(f"no curve to draw: expected at least one of {', '.join(CURVES)} in the logs")
    with drawing(path) as figure:
        panels = make_panels(figure, categories, len(fields), (2.5, 1.55), sharey="col", sharex=True)
        for log in logs:
            for axes, field in zip(panels[categories.index(log.category)], fields, strict=True):
                steps, values = pick_curve(log, field)
                marker = "o" if field == "val_loss" or len(steps) < 3 else ""
                width = 0.7 if is_replica(log.student) else None
                axes.plot(steps, values, color=colors[log.student], linewidth=width, marker=marker, markersize=3)
        for axes, field in zip(panels[0], fields, strict=True):
            axes.set_title(f"{CURVES[field]}\n(nats per token)")
            if all(min(pick_curve(log, field)[1], default=0) >= 0 for log in logs):
                axes.set_ylim(bottom=0)  # shared by the whole column
        for axes in panels[-1]:
            axes.set_xlabel("optimizer step")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=TICK_STEPS, integer=True))
        add_legend(figure, [Line2D([], [], color=colors[student]) for student in students], students)
        add_warnings(figure, logs)


def draw_scores(scores: Sequence[Score], path: str | PathLike[str]) -> None:
    """Draw scores with 95 % intervals: a row per category, a column per metric, a line in each panel per model.

    The replicas of a student are small points on the line of their mean.
    """
    categories = order_rows(score.category for score in scores)
    every = order_models(score.model for score in scores)
    models = [model for model in every if not is_averaged(model, every)]
    metrics = select_drawn(score.metric for score in scores)
    colors = choose_colors(every)
    by_key = {(score.category, score.metric, score.model): score for score in scores}
    with drawing(path) as figure:
        panels = make_metric_panels(figure, categories, len(metrics), 0.5 + 0.15 * len(models))
        for row, category in zip(panels, categories, strict=True):
            for axes, metric in zip(row, metrics, strict=True):
                cells = {model: by_key.get((category, metric.name, model)) for model in models}
                draw_score_panel(axes, cells, colors)
                for replica in [model for model in every if is_averaged(model, every)]:
                    score = by_key.get((category, metric.name, replica))
                    draw_replica(axes, score, models.index(drop_seed(replica)), colors[replica])
        panels[0, 0].set_yticks(range(len(models)), labels=models)
        panels[0, 0].set_ylim(len(models) - 0.4, -0.6)
        for column, metric in zip(panels.T, metrics, strict=True):
            set_titles(column, metric)
            set_score_scale(column[0], metric, [score for score in scores if score.metric == metric.name])


def is_averaged(model: str, models: Sequence[str]) -> bool:
    """Whether the model is a replica, and the mean over its student's replicas is among `models`."""
    return is_replica(model) and drop_seed(model) in models


def draw_replica(axes: Axes, score: Score | None, place: int, color: str) -> None:
    """Draw a replica's score as a small point below the mean on the line at `place`."""
    if score is not None and score.value is not None:
        axes.plot(
            [score.value], [place + 0.34], "o", color=color, markersize=2, markeredgewidth=0, zorder=3, clip_on=False
        )


def draw_score_panel(axes: Axes, cells: Mapping[str, Score | None], colors: Mapping[str, str]) -> None:
    """Draw one metric in one category; a dashed line marks the teacher's score, and base models are rings.

    A pale bar is the standard deviation over seeds on both sides of a mean.
    """
    for place, (model, score) in enumerate(cells.items()):
        if score is None or score.value is None:
            axes.annotate("undefined" if score else "none", (0.02, place), xycoords=("axes fraction", "data"),
                          color=GREY, fontsize=6, va="center")  # fmt: skip
            continue
        if model == TEACHER:
            axes.axvline(score.value, color=GREY, linewidth=0.8, linestyle=DASHED, zorder=1)
        draw_spread(axes, score.value, score.seed_sd, place, colors[model])
        if score.ci_low is not None and score.ci_high is not None:
            axes.plot([score.ci_low, score.ci_high], [place, place], color=colors[model], linewidth=1.4)
        face = "white" if is_base_of(model, cells) else colors[model]
        axes.plot([score.value], [place], "o", color=colors[model], markerfacecolor=face, markersize=4, clip_on=False)
    axes.grid(axis="y", visible=False)


def set_score_scale(axes: Axes, metric: Metric, scores: Sequence[Score]) -> None:
    """Set limits, scale and ticks of the x axis that the panels of a metric share; see `Metric`."""
    values = [score.value for score in scores if score.value is not None]
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=TICK_STEPS))
    if metric.limit is not None:
        axes.set_xlim(-0.04 * metric.limit, 1.04 * metric.limit)
        axes.set_xticks([0, metric.limit / 2, metric.limit])
    elif metric.can_be_log and values and 0 < LOG_RATIO * min(values) < max(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}" if value >= 1e5 else f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif metric.starts_at_0:
        axes.set_xlim(left=0)


def read_values(path: str | PathLike[str]) -> Values:
    """Read the values of one prediction file; model and category come from `…/{model}/{category}.predictions.jsonl`.

    Raises:
        InputError: a record lacks one of the fields `usable`, `label` and `parsed_value`.
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
    """Draw predicted against true values: a row per category, a column per model, the same axes within a category.

    Args:
        panels_values: the values of each panel.
        path: the figure.
        name: name of the values, for the axis labels.
    """
    categories = order_categories(values.category for values in panels_values)
    models = order_models(values.model for values in panels_values)
    colors = choose_colors(models)
    with drawing(path) as figure:
        panels = make_panels(figure, categories, len(models), (1.65, 2.1), sharex="row", sharey="row")
        for axes in panels[:, 1:].flat:
            axes.set_axis_off()  # draw_value_panel turns it on: a model may lack a category
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
    """Half the width of a category's axes: 1.3 times the 99 % quantile of the sizes of the true values."""
    sizes = np.abs(np.concatenate([values.true for values in row]))
    limit = 1.3 * float(np.quantile(sizes, 0.99)) if len(sizes) else 0.0
    return limit if limit > 0 else 1.0


def draw_value_panel(axes: Axes, values: Values, limit: float, color: str) -> None:
    """Draw one model in one category; points beyond the axes are triangles on the edge, and the title counts them."""
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
