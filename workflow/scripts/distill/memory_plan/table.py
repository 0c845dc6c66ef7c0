"""A memory plan as a table, for the terminal and for documents. Imports no torch."""

from collections.abc import Sequence

from distill.memory_plan.devices import Device
from distill.memory_plan.plan_file import Estimate, Plan, combine, find_estimates, get_key
from distill.memory_plan.stage import Stage

GIB = 2**30
HEADINGS = ("stage", "at a time", "weights", "peak", "reserved", "fits", "peak at")


def format_gib(size: int) -> str:
    """Format bytes in GiB; small ones in MiB."""
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.0f} MiB"


def format_row(name: str, found: Estimate) -> list[str]:
    """The cells of an estimate."""
    sizes = [format_gib(size) for size in (found.weights, found.live, found.reserved)]
    return [name, str(found.rows or "–"), *sizes, found.fits, found.where]


def render_plan(plan: Plan, stages: Sequence[Stage | str], device: Device) -> str:
    """Render a plan as a Markdown table, followed by what would make the other stages fit."""
    known = [(stage, found) for stage in stages if isinstance(stage, Stage) and (found := find_estimates(plan, stage))]
    lines = [
        f"Memory on {device.name}: {format_gib(device.memory)}, of which {format_gib(device.usable)} for tensors",
        "",
        *render_rows(list_rows([(stage, combine(found)) for stage, found in known])),
    ]
    for alike in group_alike(plan, [stage for stage, _ in known]):
        lines += render_changes(plan, alike)
    lines += [f"\nNot planned: {problem}" for problem in list_problems(plan, stages)]
    return "\n".join(lines)


def list_rows(known: Sequence[tuple[Stage, Estimate]]) -> list[list[str]]:
    """The rows of stages; those of one rule that take the same memory share a row."""
    names: dict[tuple[str, Estimate], list[str]] = {}
    for stage, found in known:
        names.setdefault((stage.rule, found), []).append(stage.name)
    return [format_row(join_names(alike), found) for (_, found), alike in names.items()]


def join_names(names: Sequence[str]) -> str:
    """The first name, and how many others there are.

    >>> join_names(["export of a as full", "export of a as gguf"])
    'export of a as full and 1 more'
    """
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def render_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    """Render cells as the lines of a Markdown table with aligned columns."""
    table = [HEADINGS, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADINGS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in table
    ]
    return [lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]]


def list_problems(plan: Plan, stages: Sequence[Stage | str]) -> list[str]:
    """What is not planned, and why."""
    found = []
    for stage in stages:
        if isinstance(stage, str):
            found.append(stage)
            continue
        keys = [get_key(work, plan.device) for work in stage.work]
        found += [f"{stage.name}: {plan.problems[key]}" for key in keys if key in plan.problems]
    return found


def group_alike(plan: Plan, stages: Sequence[Stage]) -> list[list[Stage]]:
    """The stages of one rule with the same work, such as the trainings of one student with several seeds, together."""
    groups: dict[tuple[str, ...], list[Stage]] = {}
    for stage in stages:
        groups.setdefault((stage.rule, *(get_key(work, plan.device) for work in stage.work)), []).append(stage)
    return list(groups.values())


def render_changes(plan: Plan, stages: Sequence[Stage]) -> list[str]:
    """Render what each change would make of stages with the same work that do not fit."""
    lines = []
    for work in stages[0].work:
        for text, found in plan.changes.get(get_key(work, plan.device), []):
            lines.append(f"  {text}: {format_gib(found.reserved)} reserved, fits: {found.fits}")
    name = join_names([stage.name for stage in stages])
    verb, subject = ("does", "It") if len(stages) == 1 else ("do", "Each")
    return [f"\n{name} {verb} not fit with a tenth to spare. {subject} would take, with:", *lines] if lines else []
