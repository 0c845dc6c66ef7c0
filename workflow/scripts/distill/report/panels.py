"""Style, colours, grids of panels and saving for the figures of the report.

Names of models and categories are data, never markup. The same input gives the same bytes.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from distill.common.errors import InputError
from distill.common.names import POOLED, TEACHER
from distill.evaluation.metrics import Metric
from distill.evaluation.score_table import get_owner, order_categories, order_models

# Okabe and Ito's palette, which colour-blind readers can distinguish; the teacher is black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#8a8a8a"
DASHED = (0, (4, 3))
STYLE: Any = {
    "text.parse_math": False,  # a `$` in a name is not math
    "svg.fonttype": "none",
    "svg.hashsalt": "distill",
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.2,
}
FORMATS = ("svg", "png")
MAX_COLUMNS = 8  # panels side by side that fit the width of a report
MAX_ROWS = 6  # panels below one title: about what a screen shows
TITLE_HEIGHT = 0.35  # of a title and tick labels between two rows, inches


@contextmanager
def drawing(path: str | PathLike[str]) -> Iterator[Figure]:
    """Yield an empty figure in the report's style and save it to `path` atomically.

    Args:
        path: file with the suffix .svg or .png.

    Raises:
        InputError: the file has another suffix.
    """
    target = Path(path)
    form = target.suffix.removeprefix(".")
    if form not in FORMATS:
        raise InputError(f"{path}: expected a file name that ends in .svg or .png")
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with rc_context(STYLE):
        figure = Figure(layout="constrained")
        yield figure
        try:
            metadata = {"Date": None} if form == "svg" else None
            figure.savefig(aside, format=form, dpi=150, metadata=metadata)
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)


def choose_colors(models: Sequence[str]) -> dict[str, str]:
    """Black for the teacher and a colour per student, which its replicas, its `_base` and its variants share.

    A student with replicas among `models` has a colour under its own name, too.
    """
    students = dict.fromkeys(get_owner(model, models) for model in order_models(models) if model != TEACHER)
    colors = {student: COLORS[i % len(COLORS)] for i, student in enumerate(students)}
    colors |= {model: colors[get_owner(model, models)] for model in models if model != TEACHER}
    return colors | {TEACHER: "black"}


def draw_spread(axes: Axes, value: float, spread: float | None, place: float, color: str) -> None:
    """Draw a pale bar of one standard deviation over seeds on both sides of a value, on the line at `place`."""
    if spread is not None:
        ends = [value - spread, value + spread]
        axes.plot(ends, [place, place], color=color, linewidth=6, alpha=0.35, solid_capstyle="butt")


def wrap_name(name: str, width: int) -> str:
    """The name, with line breaks after separators if it is longer than `width` characters."""
    return re.sub(r"(.{8,}?[-_ .])(?=.)", r"\1\n", name) if len(name) > width else name


def make_panels(figure: Figure, rows: Sequence[str], columns: int, size: tuple[float, float], **share: Any) -> Any:
    """A grid of panels with the name of each row at its left edge.

    Args:
        figure: the figure.
        rows: names of the rows.
        columns: number of columns.
        size: width and height of a panel, inches.
        share: `sharex` and `sharey` of `Figure.subplots`.

    Returns:
        Axes, (rows, columns).
    """
    figure.set_size_inches(columns * size[0] + 1.4, len(rows) * size[1] + 0.8)
    panels = figure.subplots(len(rows), columns, squeeze=False, **share)
    for axes, name in zip(panels[:, 0], rows, strict=True):
        axes.set_ylabel(wrap_name(name, 14), fontweight="bold")
    return panels


def order_rows(categories: Iterable[str]) -> list[str]:
    """Categories in the order of their rows: of more than MAX_ROWS, the pooled one first, where it is seen at once."""
    ordered = order_categories(categories)
    return sorted(ordered, key=lambda category: category != POOLED) if len(ordered) > MAX_ROWS else ordered


def make_metric_panels(figure: Figure, rows: Sequence[str], metrics: int, height: float) -> Any:
    """A grid with a row per category and a column per metric. The panels of a metric share their x axis.

    More than MAX_COLUMNS metrics are split into blocks, one below the other; each block has all rows. If there are more
    than MAX_ROWS rows, each has room for titles and tick labels.

    Args:
        figure: the figure.
        rows: names of the rows.
        metrics: number of metrics.
        height: height of a panel, inches.

    Returns:
        Axes, (rows, metrics).
    """
    blocks = -(-metrics // MAX_COLUMNS)
    columns = -(-metrics // blocks)
    is_long = len(rows) > MAX_ROWS
    size = (1.5, height + TITLE_HEIGHT * is_long)
    grid = make_panels(figure, [*rows] * blocks, columns, size, sharey=True)
    panels = np.empty((len(rows), metrics), dtype=object)
    for place in range(blocks * columns):
        block, column = divmod(place, columns)
        column_panels = grid[block * len(rows) : (block + 1) * len(rows), column]
        if place >= metrics:
            for axes in column_panels:
                axes.set_axis_off()
            continue
        panels[:, place] = column_panels
        for axes in column_panels[1:]:
            axes.sharex(column_panels[0])
        for axes in column_panels[:-1]:
            axes.tick_params(labelbottom=is_long)
    return panels


def set_titles(column: Sequence[Axes], metric: Metric) -> None:
    """Set the title of a metric's panels: on the first one, or on each of more than MAX_ROWS."""
    for axes in column if len(column) > MAX_ROWS else column[:1]:
        axes.set_title(metric.title or metric.name)


def add_legend(figure: Figure, handles: Sequence[Line2D], names: Sequence[str]) -> None:
    """Add one legend above all panels."""
    legend = figure.legend(handles, [""] * len(names), loc="outside upper center", ncols=min(len(names), 6))
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)  # not as a label: matplotlib drops labels with a leading underscore
