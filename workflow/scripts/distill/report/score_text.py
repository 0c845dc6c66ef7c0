"""The score table as text, for a terminal and in Markdown."""

import math
from collections.abc import Iterable, Sequence

from distill.evaluation.score_table import Score, order_categories, order_models

SHOWN = {
    "coverage": "coverage %",
    "mae": "MAE",
    "ppl": "PPL",
    "agreement": "agreement %",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rougeL": "ROUGE-L",
    "fdistill_coverage": "PPL by teacher",
    "length_ratio": "length ratio",
    "repetition": "repetition %",
    "distinct1": "distinct-1 %",
    "distinct2": "distinct-2 %",
}
WITH_INTERVAL = ("coverage", "mae")
SHARES = ("coverage", "agreement", "repetition", "distinct1", "distinct2")  # shown as percentages
PERPLEXITIES = ("ppl", "fdistill_coverage")
LEAST = ("distinct1", "distinct2", "repetition")  # left out first where a line is too wide
WIDTH = 120


def choose_metrics(scores: Iterable[Score]) -> list[str]:
    """Metrics of a printed table: those that there are; where answers have a contract, it tells more than agreement."""
    found = {score.metric for score in scores}
    return [metric for metric in SHOWN if metric in found and not (metric == "agreement" and "coverage" in found)]


def choose_decimals(scores: Iterable[Score]) -> dict[str, int]:
    """Decimals of each metric: one from 0 to 100, two of a ratio, three significant digits of median MAE and PPL."""
    sizes: dict[str, list[float]] = {}
    for score in scores:
        if score.metric in ("mae", *PERPLEXITIES) and score.value:
            sizes.setdefault(score.metric, []).append(abs(score.value))
    medians = {metric: sorted(values)[len(values) // 2] for metric, values in sizes.items()}
    chosen = {metric: min(max(2 - math.floor(math.log10(size)), 1), 6) for metric, size in medians.items()}
    return dict.fromkeys(SHOWN, 1) | {"length_ratio": 2} | chosen


def format_figure(value: float | None, decimals: int) -> str:
    """A figure as text; an undefined one is a dash, and one of ten digits or more a power of ten."""
    if value is None:
        return "–"
    return f"{value:.2e}" if abs(value) >= 1e9 else f"{value:.{decimals}f}"


def format_column(metric: str, column: Sequence[Score | None], decimals: int, intervals: bool) -> list[str]:
    """The cells of one metric, a model each, with the interval behind the figure where it is asked for and known."""
    scale = 100 if metric in SHARES else 1
    cells = []
    for score in column:
        numbers = (score.value, score.ci_low, score.ci_high) if score else (None, None, None)
        value, low, high = (format_figure(None if x is None else scale * x, decimals) for x in numbers)
        cells.append(f"{value} [{low}, {high}]" if intervals and numbers[1] is not None else value)
    return cells


def build_columns(
    scores: Sequence[Score], models: Sequence[str], decimals: dict[str, int], metrics: Sequence[str], intervals: bool
) -> dict[str, list[str]]:
    """One category's table, heading to cells, a cell a model: names, number of records, then the metrics.

    Metrics that no model has are left out. MAE has its own count: it rests on usable answers with a label alone.
    """
    by_key = {(score.model, score.metric): score for score in scores}
    counts = {model: max((s.n for s in scores if s.model == model), default=0) for model in models}
    columns = {"model": list(models), "n": [str(counts[model]) for model in models]}
    for metric in metrics:
        column = [by_key.get((model, metric)) for model in models]
        if any(column):
            with_interval = intervals and metric in WITH_INTERVAL
            columns[SHOWN[metric]] = format_column(metric, column, decimals[metric], with_interval)
        if any(column) and metric == "mae":
            columns["n (MAE)"] = [str(score.n) if score else "–" for score in column]
    return columns


def align_columns(columns: dict[str, list[str]]) -> list[str]:
    """Lines of a table, headings first: the first column to the left, the others to the right."""
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    pads = [(str.rjust if i else str.ljust, width) for i, width in enumerate(widths)]
    return ["  ".join(pad(cell, width) for cell, (pad, width) in zip(row, pads, strict=True)) for row in rows]


def split_categories(scores: Sequence[Score]) -> dict[str, tuple[list[Score], list[str]]]:
    """Category to its scores and its models, both in table order."""
    blocks = {}
    for category in order_categories(score.category for score in scores):
        chosen = [score for score in scores if score.category == category]
        blocks[category] = chosen, order_models(score.model for score in chosen)
    return blocks


def format_text(scores: Sequence[Score], width: int = WIDTH) -> str:
    """The score table for a terminal, a block a category.

    Where a line would pass `width`, intervals are left out, and then the columns of LEAST, one after the other.
    """
    blocks, decimals, metrics = split_categories(scores), choose_decimals(scores), choose_metrics(scores)
    for intervals, left_out in ((True, 0), *((False, count) for count in range(len(LEAST) + 1))):
        kept = [metric for metric in metrics if metric not in LEAST[:left_out]]
        tables = {
            category: align_columns(build_columns(chosen, models, decimals, kept, intervals))
            for category, (chosen, models) in blocks.items()
        }
        if max((len(line) for lines in tables.values() for line in lines), default=0) <= width:
            break
    return "\n\n".join("\n".join([category, *lines]) for category, lines in tables.items())


def format_markdown(scores: Sequence[Score]) -> str:
    """The score table as one Markdown table with a column for the category."""
    rows: list[tuple[str, ...]] = []
    decimals, metrics = choose_decimals(scores), choose_metrics(scores)
    headings = ["category", "model", "n", *(SHOWN[metric] for metric in metrics)]
    if "mae" in metrics:
        headings.insert(headings.index("MAE") + 1, "n (MAE)")
    for category, (chosen, models) in split_categories(scores).items():
        columns = {"category": [category] * len(models), **build_columns(chosen, models, decimals, metrics, True)}
        rows += zip(*(columns.get(heading, ["–"] * len(models)) for heading in headings), strict=True)
    used = [i for i in range(len(headings)) if any(row[i] != "–" for row in rows)]
    lines = [[headings[i] for i in used], ["---" if i < 2 else "---:" for i in used]]
    lines += [[row[i].replace("|", "\\|") for i in used] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
