"""What the report's figures share: style, colours, a grid of panels, and saving.

Names of models and categories are data: nothing in them is markup. The same input gives the same bytes.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from distill.common.errors import InputError
from distill.common.names import TEACHER
from distill.evaluation.score_table import get_owner, order_models

# Okabe and Ito's palette, told apart by colour-blind readers; black is the teacher's.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#8a8a8a"
DASHED = (0, (4, 3))
STYLE: Any = {
    "text.parse_math": False,  # a `$` in a name stays one
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
MOST_COLUMNS = 8  # panels side by side that a report's width can hold


@contextmanager
def drawing(path: str | PathLike[str]) -> Iterator[Figure]:
    """Yield an empty figure in the report's style; save it to `path` (.svg or .png), whole or not at all.

    Raises:
        InputError: another suffix.
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
    """Black for the teacher, one colour a student, the same for the student's `_base` and variants."""
    students = [model for model in order_models(models) if model != TEACHER and get_owner(model, models) == model]
    colors = {student: COLORS[i % len(COLORS)] for i, student in enumerate(students)}
    colors |= {model: colors[get_owner(model, models)] for model in models if model != TEACHER}
    return colors | {TEACHER: "black"}


def wrap_name(name: str, width: int) -> str:
    """A name longer than `width` with line breaks behind some of its separators."""
    return re.sub(r"(.{8,}?[-_ .])(?=.)", r"\1\n", name) if len(name) > width else name


def make_panels(figure: Figure, rows: Sequence[str], columns: int, size: tuple[float, float], **share: Any) -> Any:
    """A grid of panels (rows, columns) of `size` inches each, with each row's name at its left edge."""
    figure.set_size_inches(columns * size[0] + 1.4, len(rows) * size[1] + 0.8)
    panels = figure.subplots(len(rows), columns, squeeze=False, **share)
    for axes, name in zip(panels[:, 0], rows, strict=True):
        axes.set_ylabel(wrap_name(name, 14), fontweight="bold")
    return panels


def make_metric_panels(figure: Figure, rows: Sequence[str], metrics: Sequence[str], height: float) -> Any:
    """Panels (rows, metrics), each `height` inches high, with one y axis; more than MOST_COLUMNS stand in blocks.

    A block is some metrics of all rows; the blocks stand one under the other. A metric's panels share their x axis.
    """
    blocks = -(-len(metrics) // MOST_COLUMNS)
    columns = -(-len(metrics) // blocks)
    grid = make_panels(figure, [*rows] * blocks, columns, (1.5, height), sharey=True)
    panels = np.empty((len(rows), len(metrics)), dtype=object)
    for place in range(blocks * columns):
        block, column = divmod(place, columns)
        of_metric = grid[block * len(rows) : (block + 1) * len(rows), column]
        if place >= len(metrics):
            for axes in of_metric:
                axes.set_axis_off()
            continue
        panels[:, place] = of_metric
        for axes in of_metric[1:]:
            axes.sharex(of_metric[0])
        for axes in of_metric[:-1]:
            axes.tick_params(labelbottom=False)
    return panels


def add_legend(figure: Figure, handles: Sequence[Line2D], names: Sequence[str]) -> None:
    """One legend above all panels."""
    legend = figure.legend(handles, [""] * len(names), loc="outside upper center", ncols=min(len(names), 6))
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)  # set afterwards: matplotlib drops a legend label that begins with an underscore
