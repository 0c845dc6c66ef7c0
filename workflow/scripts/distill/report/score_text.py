"""The score table as text, for a terminal and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from distill.evaluation.metrics import Metric, list_metrics, select_metrics, select_printed
from distill.evaluation.score_table import Score, order_categories, order_models

if TYPE_CHECKING:
    import pandas as pd

DASH = "–"  # undefined or missing
WIDTH = 120


def keep_three_digits(values: Iterable[float | None]) -> int:
    """Digits after the decimal point that keep three significant digits of the median size, from 1 to 6."""
    sizes = sorted(abs(value) for value in values if value)
    return min(max(2 - math.floor(math.log10(sizes[len(sizes) // 2])), 1), 6) if sizes else 1


def choose_decimals(scores: Sequence[Score]) -> dict[str, int]:
    """Digits after the decimal point, by metric name; see `Metric.decimals`."""
    return {
        metric.name: keep_three_digits(score.value for score in scores if score.metric == metric.name)
        if metric.decimals is None
        else metric.decimals
        for metric in select_metrics(score.metric for score in scores)
    }


def format_number(value: float | None, decimals: int) -> str:
    """A number as text; None is a dash, and a number with ten digits or more is in scientific notation."""
    if value is None:
        return DASH
    return f"{value:.2e}" if abs(value) >= 1e9 else f"{value:.{decimals}f}"


def format_score(score: Score, metric: Metric, decimals: int, with_interval: bool) -> str:
    """A score as text with its spread over seeds, and its interval if `with_interval` and the metric ask for it."""
    scale = 100 if metric.is_percentage else 1
    numbers = [None if x is None else scale * x for x in (score.value, score.ci_low, score.ci_high, score.seed_sd)]
    value, low, high, spread = (format_number(number, decimals) for number in numbers)
    value += f" ± {spread}" if score.seed_sd is not None else ""
    has_interval = with_interval and metric.shows_interval and score.ci_low is not None
    return f"{value} [{low}, {high}]" if has_interval else value


def build_table(scores: Sequence[Score], metrics: Iterable[Metric], with_intervals: bool) -> pd.DataFrame:
    """The cells of the printed table, NaN where a model has no score.

    Args:
        scores: all scores, at least one.
        metrics: the metrics to show, in their order.
        with_intervals: show the intervals of the metrics that show them.

    Returns:
        A row per category and model, a column per heading: the number of records, then the metrics. A metric with its
        own number of records is followed by that number. The name of a mean over replicas is followed by the number
        of seeds.
    """
    import pandas as pd

    decimals, declared = choose_decimals(scores), list_metrics(score.metric for score in scores)
    frame = pd.DataFrame(scores)
    frame["count"] = frame["n"].astype(str)
    frame["cell"] = [
        format_score(score, declared[score.metric], decimals[score.metric], with_intervals) for score in scores
    ]
    frame["records"] = frame["n"].where(~frame["metric"].map(lambda name: declared[name].is_task))
    counts = frame.groupby(["category", "model"])[["records", "n"]].max()
    table = counts["records"].fillna(counts["n"]).astype(int).astype(str).to_frame("n")  # documents if nothing else
    cells = frame.pivot_table(["cell", "count"], ["category", "model"], "metric", aggfunc="last")
    for metric in metrics:
        table[metric.heading] = cells["cell", metric.name]
        if metric.has_own_n:
            table[f"n ({metric.heading})"] = cells["count", metric.name]
    models = frame.groupby("category")["model"].agg(order_models)
    table = table.loc[[(name, model) for name in order_categories(frame["category"]) for model in models[name]]]
    seeds = {score.model: f"{score.model} ({score.seeds} seeds)" for score in scores if score.seeds > 1}
    return table.rename(index=seeds, level="model")


def list_layouts(metrics: Sequence[Metric]) -> Iterator[tuple[list[Metric], bool]]:
    """Yield (metrics to show, whether with intervals), the widest layout first."""
    kept = list(metrics)
    yield kept, True
    yield kept, False
    for dropped in sorted((metric for metric in metrics if metric.drop_order), key=lambda one: one.drop_order or 0):
        kept = [metric for metric in kept if metric is not dropped]
        yield kept, False


def align(table: pd.DataFrame) -> list[str]:
    """The lines of a table, headings first; the first column is left-aligned, the others are right-aligned."""
    rows = [list(table.columns), *table.itertuples(index=False)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def format_text(scores: Sequence[Score], width: int = WIDTH) -> str:
    """The score table for a terminal, a block per category.

    If a line is longer than `width`, the intervals are left out, then the columns with a `drop_order`, one by one.
    """
    blocks: dict[str, list[str]] = {}
    for metrics, with_intervals in list_layouts(select_printed(score.metric for score in scores)) if scores else ():
        for category, block in build_table(scores, metrics, with_intervals).groupby(level="category", sort=False):
            blocks[category] = align(block.dropna(axis="columns", how="all").fillna(DASH).reset_index("model"))
        if max(len(line) for lines in blocks.values() for line in lines) <= width:
            break
    return "\n\n".join("\n".join([category, *lines]) for category, lines in blocks.items())


def format_markdown(scores: Sequence[Score]) -> str:
    """The score table as one Markdown table with a column for the category."""
    if not scores:
        return ""
    table = build_table(scores, select_printed(score.metric for score in scores), with_intervals=True).fillna(DASH)
    table = table.loc[:, (table != DASH).any()].reset_index()
    rows = [list(table.columns), ["---", "---", *["---:"] * (table.shape[1] - 2)]]
    rows += [[cell.replace("|", "\\|") for cell in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
