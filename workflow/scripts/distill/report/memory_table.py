"""The memory that jobs used, beside what the memory plan says of them."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.common.errors import InputError
from distill.common.files import read_jsonl, write_atomically

COLUMNS = (
    "stage",
    "category",
    "used_mib",
    "used_reserved_mib",
    "planned_mib",
    "planned_reserved_mib",
    "device",
    "fits",
)
MIB = 2**20
Used = tuple[int | None, int | None]


def read_used(rule: str, path: Path) -> tuple[dict[str, str], str, Used]:
    """Read what a job used.

    Args:
        rule: the job's rule.
        path: its statistics: `stats.json` of answers or a signal, or the log of a training.

    Returns:
        The wildcards that decide its memory, its category, and its peak memory in MiB: of tensors, and reserved on
        GPUs; None if it computed nothing, and for reserved memory on a CPU.
    """
    if rule == "train_student":
        student, category = path.parts[-3:-1]
        records = [record for _, record in read_jsonl(path)]
        return {"student": student}, category, find_most(records, "memory_mb", "reserved_mb")
    record = json.loads(path.read_text(encoding="utf-8"))
    used = find_most([record], "peak_memory_mb", "peak_reserved_mb")
    if rule == "compute_signal":
        category, signal = path.parts[-3:-1]
        return {"signal": signal}, category, used
    return {}, path.name.removeprefix("teacher_outputs_").removesuffix(".stats.json"), used


def find_most(records: Sequence[dict[str, Any]], *keys: str) -> Used:
    """The largest value of each key; None if no record has one above 0."""
    tensors, reserved = (max((record.get(key) or 0 for record in records), default=0) or None for key in keys)
    return tensors, reserved


def read_plan(path: Path | None) -> tuple[str, list[dict[str, Any]]]:
    """Read the device and the stages of a memory plan; nothing without a plan.

    Raises:
        InputError: the file is not a plan.
    """
    if path is None:
        return "", []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found["device"], found["stages"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected a memory plan ({error!r}); delete it, and run `make plan` again") from None


def list_rows(files: dict[str, Sequence[Path]], plan: Path | None) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table: jobs with what they used, then planned stages of which no figure is kept.

    Args:
        files: statistics of the jobs, by rule.
        plan: file of the memory plan, if there is one.
    """
    device, stages = read_plan(plan)
    shown: list[dict[str, Any]] = []
    for rule, paths in files.items():
        for path in paths:
            wildcards, category, used = read_used(rule, path)
            stage = find_stage(stages, rule, wildcards, category)
            name = stage["name"] if stage else " ".join([rule, *wildcards.values()])
            yield make_row(name, category, used, stage, device)
            shown += [stage] if stage else []
    yield from (make_row(stage["name"], "", (None, None), stage, device) for stage in stages if stage not in shown)


def find_stage(
    stages: Sequence[dict[str, Any]], rule: str, wildcards: dict[str, str], category: str
) -> dict[str, Any] | None:
    """The stage of a job: that of its category, if the category's teacher takes other memory; None if unknown."""
    for wanted in (wildcards | {"category": category}, wildcards):
        for stage in stages:
            if stage["rule"] == rule and stage["wildcards"] == wanted:
                return stage
    return None


def make_row(name: str, category: str, used: Used, stage: dict[str, Any] | None, device: str) -> dict[str, Any]:
    """A row of the table; a figure that is not known is an empty cell."""
    row: dict[str, Any] = {"stage": name, "category": category, "used_mib": used[0], "used_reserved_mib": used[1]}
    if stage:
        sizes = {"planned_mib": "live", "planned_reserved_mib": "reserved"}
        row |= {column: round(stage[key] / MIB) for column, key in sizes.items()}
        row |= {"device": device, "fits": stage["fits"]}
    return row


def write_memory(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    """Write the table as CSV; return the number of rows."""
    count = 0
    with write_atomically(path) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for count, row in enumerate(rows, start=1):  # noqa: B007
            writer.writerow(row)
    return count
