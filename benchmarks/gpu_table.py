"""The results of gpu.py as Markdown tables. Imports no torch."""

from collections.abc import Sequence
from typing import Any

from gpu_parts import Measurement, list_measurements
from ratios import Rows, compare

PEAKS = ("peak_allocated_mb", "peak_reserved_mb", "peak_resident_mb")


def measured(result: dict[str, Any], measurements: Sequence[Measurement]) -> Rows:
    """Return the successful measurements by way."""
    found = {one.way: result["measurements"].get(one.name, {}) for one in measurements}
    return {way: row for way, row in found.items() if "seconds" in row}


def group_measurements() -> dict[str, list[Measurement]]:
    """Return all measurements by group, in the order of the tables."""
    groups: dict[str, list[Measurement]] = {}
    for one in list_measurements():
        groups.setdefault(one.group, []).append(one)
    return groups


def compute_ratios(result: dict[str, Any]) -> dict[str, Any]:
    """Compute the speed and memory of this project's ways relative to each other way, by group.

    Answers are compared by tokens a second, since the ways generate different numbers; training steps by their time.
    """
    is_gpu = result["machine"]["gpu"] is not None
    found = {}
    for group, members in group_measurements().items():
        if members[0].part == "signals":
            continue
        ours = [one.way for one in members if one.is_ours]
        rows = measured(result, members)
        ratios = compare(rows, ours, get_speed, "peak_allocated_mb" if is_gpu else "peak_resident_mb")
        found |= {group: ratios} if ratios else {}
    return found


def get_speed(row: dict[str, Any]) -> float:
    """Return the speed of a row: training steps or tokens a second."""
    return row["tokens_per_second"] if "tokens_per_second" in row else 1 / row["seconds"]


def format_tables(result: dict[str, Any]) -> str:
    """Format all that was attempted as tables, with a heading each."""
    ratios = compute_ratios(result)
    parts = [describe_run(result)]
    for group, members in group_measurements().items():
        rows = {one: result["measurements"][one.name] for one in members if one.name in result["measurements"]}
        if rows:
            heading = describe_group(members[0], result["settings"])
            parts.append(f"{heading}\n\n{format_group(rows, ratios.get(group, {}))}")
    if memory := format_memory(result):
        parts.append(memory)
    return "\n\n".join(parts)


def describe_run(result: dict[str, Any]) -> str:
    """Return machine, versions and shape in a line or two."""
    machine, shape = result["machine"], result["settings"]["shape"]
    lines = [
        f"{machine['gpu'] or machine['cpu']}, torch {machine['torch']}, transformers {machine['transformers']}, "
        f"{shape} with random weights, {result['settings']['precision']}, {result['date']}"
    ]
    if shape == "tiny":
        lines.append("A rehearsal on tiny models: these figures say nothing about speed or memory.")
    if len({row["code"] for row in result["measurements"].values()}) > 1:
        lines.append("The measurements are of different states of the code; see `code` in the results.")
    return "\n".join(lines)


def describe_group(one: Measurement, settings: dict[str, Any]) -> str:
    """Return the heading of a group."""
    lengths = f"{settings['prompt_tokens']:,} prompt tokens"
    if one.part == "kd_step":
        return (
            f"Training step, batch {one.batch}, {lengths} and {settings['completion_tokens']:,} completion tokens "
            f"(median of {settings['steps']})"
        )
    if one.part == "generation":
        mean = settings["completion_tokens"]
        return f"Generation, {lengths}, answers of {mean // 2:,} to {mean + mean // 2:,} tokens"
    return f"Signals, {lengths} and {settings['completion_tokens']:,} completion tokens"


def format_group(rows: dict[Measurement, dict[str, Any]], ratios: dict[str, Any]) -> str:
    """Format the measurements of a group; a column for each of this project's ways says how much faster it is."""
    first = next(iter(rows))
    head = {
        "kd_step": ["seconds a step", "completion tokens/s"],
        "generation": ["records", "tokens/s"],
        "signals": ["tokens read/s", "completion tokens/s"],
    }[first.part]
    keys = {
        "kd_step": ["seconds", "completion_tokens_per_second"],
        "generation": ["records", "tokens_per_second"],
        "signals": ["tokens_per_second", "completion_tokens_per_second"],
    }[first.part]
    mine = [way for way in ratios if any(way != other for other in ratios[way])]
    lines = []
    for one, row in rows.items():
        label = f"**{one.way}**" if one.is_ours else one.way
        if "seconds" not in row:
            lines.append([label, explain_missing(row)] + [""] * (len(head) + len(mine)))
            continue
        values = [format_number(row[key]) for key in keys]
        faster = [f"{ratios[way][one.way]['speed']:.2f}" if one.way in ratios[way] else "" for way in mine]
        lines.append([label, *values, format_peaks(row), *faster])
    columns = ["way", *head, "peak memory (GiB)", *(f"{way} is faster by" for way in mine)]
    return format_markdown(columns, lines)


def explain_missing(row: dict[str, Any]) -> str:
    """Return why a row has no figures."""
    return row["skipped"] if "skipped" in row else f"failed: {row['failed']}"


def format_number(value: float) -> str:
    """Format a number with three digits or more."""
    digits = 0 if value >= 100 or isinstance(value, int) else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f}"


def format_peaks(row: dict[str, Any]) -> str:
    """Format the peak of a row: allocated and reserved memory of a GPU, or resident memory."""
    if "peak_resident_mb" in row:
        return f"{row['peak_resident_mb'] / 1024:.1f}"
    return f"{row['peak_allocated_mb'] / 1024:.1f} ({row['peak_reserved_mb'] / 1024:.1f} reserved)"


def format_memory(result: dict[str, Any]) -> str | None:
    """Format the peaks of this project's ways beside the plan's; None without a plan."""
    lines = []
    for name, planned in result["planned"].items():
        row = result["measurements"].get(name, {})
        row = row.get("accumulated", row)  # a training's plan keeps the gradients of a micro-batch before
        if not any(key in row for key in PEAKS):
            continue
        if "failed" in planned:
            lines.append([name, format_peaks(row), f"failed: {planned['failed']}", ""])
            continue
        key = "peak_allocated_mb"  # a CPU's resident memory is more than the tensors of the plan
        difference = f"{100 * (planned[key] / row[key] - 1):+.1f}%" if key in row else ""
        lines.append([name, format_peaks(row), format_peaks(planned), difference])
    if not lines:
        return None
    table = format_markdown(["measurement", "peak memory (GiB)", "planned (GiB)", "plan is higher by"], lines)
    return f"Memory beside the plan\n\n{table}"


def format_markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table whose first column is text and whose others are numbers."""
    rows = [columns, ["---", *["---:"] * (len(columns) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
