"""The figure of comparisons: a forest plot of the score differences between pairs of models."""

import math
from collections.abc import Sequence
from os import PathLike

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from distill.common.names import POOLED
from distill.evaluation.comparison_table import Comparison
from distill.evaluation.metrics import Metric, select_drawn
from distill.report.figures import LOG_RATIO, TICK_STEPS
from distill.report.panels import GREY, choose_colors, draw_spread, drawing, make_metric_panels, order_rows, set_titles

# Powers of ten from which tick labels share a factor: longer labels of neighbouring ticks would overlap.
POWER_LIMITS = (-3, 5)
MAX_LINES = 200  # about what five screens show
MINUS = "\N{MINUS SIGN}"


def draw_comparisons(rows: Sequence[Comparison], path: str | PathLike[str]) -> None:
    """Draw differences with 95 % intervals: a row per category, a column per metric, a line in each panel per pair.

    A pale bar is the standard deviation over seeds on both sides of a difference; see `Comparison`. With more than
    MAX_LINES lines in a column, only the pooled row is drawn, and a note says so.
    """
    categories = order_rows(row.category for row in rows)
    pairs = list(dict.fromkeys((row.model, row.other) for row in rows))
    is_pooled = POOLED in categories and len(pairs) * len(categories) > MAX_LINES
    if is_pooled:
        rows, categories = [row for row in rows if row.category == POOLED], [POOLED]
    metrics = select_drawn(row.metric for row in rows)
    colors = choose_colors([*dict.fromkeys(model for model, _ in pairs), *(other for _, other in pairs)])
    with drawing(path) as figure:
        panels = make_metric_panels(figure, categories, len(metrics), 0.5 + 0.15 * len(pairs))
        panels[0, 0].set_yticks(range(len(pairs)), labels=[f"{model} {MINUS} {other}" for model, other in pairs])
        panels[0, 0].set_ylim(len(pairs) - 0.4, -0.6)
        for column, metric in zip(panels.T, metrics, strict=True):
            drawn = [row for row in rows if row.metric == metric.name]
            for axes, category in zip(column, categories, strict=True):
                axes.axvline(0, color=GREY, linewidth=0.8, zorder=1)
                axes.grid(axis="y", visible=False)
                for row in drawn:
                    if row.category == category:
                        draw_difference(axes, pairs.index((row.model, row.other)), row, colors[row.model])
            set_titles(column, metric)
            set_difference_scale(column[0], metric, drawn)
        if is_pooled:
            figure.supxlabel(
                "All categories together; comparisons.csv has each of them.", fontsize=7, x=0.01, ha="left"
            )


def draw_difference(axes: Axes, place: int, row: Comparison, color: str) -> None:
    """Draw one pair's difference; the point is filled if there is an interval and it excludes 0."""
    if row.difference is None:
        axes.annotate(
            "undefined", (0.02, place), xycoords=("axes fraction", "data"), color=GREY, fontsize=6, va="center"
        )
        return
    excludes_0 = False
    draw_spread(axes, row.difference, row.seed_sd, place, color)
    if row.ci_low is not None and row.ci_high is not None:
        axes.plot([row.ci_low, row.ci_high], [place, place], color=color, linewidth=1.4)
        excludes_0 = row.ci_low > 0 or row.ci_high < 0
    face = color if excludes_0 else "white"
    axes.plot([row.difference], [place], "o", color=color, markerfacecolor=face, markersize=4, clip_on=False)


def set_difference_scale(axes: Axes, metric: Metric, rows: Sequence[Comparison]) -> None:
    """Set the x axis that the panels of a metric share: linear, or logarithmic on both sides of 0 for a wide range."""
    sizes = sorted(abs(row.difference) for row in rows if row.difference)
    if metric.can_be_log and sizes and sizes[-1] > LOG_RATIO * sizes[len(sizes) // 2]:
        axes.set_xscale("symlog", linthresh=(middle := sizes[len(sizes) // 2]))
        differences = [row.difference for row in rows if row.difference]
        # More ticks than both ends and 0 do not fit a panel.
        ends = [end for end in (min(differences), max(differences)) if abs(end) > 10 * middle]
        axes.set_xticks([0, *(math.copysign(10 ** math.floor(math.log10(abs(end))), end) for end in ends)])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        return
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3, steps=TICK_STEPS))
    axes.ticklabel_format(axis="x", scilimits=POWER_LIMITS)
    if not any(end for row in rows for end in (row.difference, row.ci_low, row.ci_high)):
        axes.set_xlim(-1, 1)
