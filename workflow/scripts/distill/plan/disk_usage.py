"""What a working directory holds by step: bytes, whether it can be removed, and what making it again costs."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from distill.common.disk import find_free, format_bytes, measure_folder
from distill.common.trackers import FOLDER as TRACKERS_FOLDER
from distill.evaluation.pairs import JOURNAL as VERDICTS
from distill.models.example_folders import EXAMPLES
from distill.plan.experiment import Config
from distill.plan.signals import SIGNALS

RESERVED = ("evaluation", "export", "report", "llamafactory")  # folders of output/ that are no students


@dataclass(frozen=True)
class Step:
    """Files of a step in a working directory.

    Attributes:
        name: name of the step.
        paths: patterns of its files and folders. Those that an earlier step has listed count there alone.
        removal: what removing them means.
        rules: the rules that make them, whose recorded time is the cost of making them again.
    """

    name: str
    paths: tuple[str, ...]
    removal: str
    rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Usage:
    """What a step holds.

    Attributes:
        step: the step.
        size: bytes on disk.
        seconds: recorded time of the jobs that made it; None if nothing is recorded.
        places: folders outside the working directory among them.
    """

    step: Step
    size: int
    seconds: float | None
    places: tuple[Path, ...] = ()


def list_steps(config: Config) -> list[Step]:
    """Return the steps in the order of the data path."""
    return [
        Step(
            "downloads",
            ("models/hf", "models/modelscope", "datasets/hf"),
            "downloaded again",
            ("download_model", "download_dataset"),
        ),
        Step(
            "answer cache",
            (config["cache"],),
            "only through `make cache ARGS=prune`: the teacher would be asked again",
            ("generate_answers",),
        ),
        Step(
            "answers and splits",
            ("artifacts/distill_data/raw", "artifacts/distill_data/processed"),
            "made again from the answer cache",
            ("mix_records", "make_prompts", "find_near_duplicates", "gather_answers", "split_answers"),
        ),
        Step("signals", (SIGNALS, *list_stores(config)), "yes, once the students are trained", ("compute_signal",)),
        Step("copied students", ("artifacts/initial_students",), "made again from the teacher", ("copy_layers",)),
        Step("tokenized examples", (str(EXAMPLES),), "yes: made again by the next training"),
        Step("checkpoints", ("artifacts/checkpoints",), "yes, but interrupted trainings start again"),
        Step(
            "kept evaluations",
            ("artifacts/predicted", "artifacts/judged", "artifacts/task_responses"),
            "yes, but interrupted or repeated evaluations start again",
        ),
        Step(
            "judge's verdicts",
            (str(VERDICTS),),
            "only if scores are final: the judge would be asked again",
            ("judge_pairs",),
        ),
        Step("students", ("output/*",), "no: they are the result", ("train_student",)),
        Step(
            "predictions and scores",
            ("output/evaluation",),
            "made again from the students",
            (
                "predict_answers",
                "predict_models",
                "answer_questions",
                "judge_answers",
                "run_tasks",
                "score_predictions",
                "average_scores",
            ),
        ),
        Step(
            "exports",
            ("output/export", "output/llamafactory"),
            "made again from the students",
            ("export_model", "write_model_card"),
        ),
        Step("report", ("output/report",), "made again from the scores"),
        Step("trackers", (str(TRACKERS_FOLDER),), "yes, with the curves in it"),
        Step("logs", ("logs", ".snakemake"), "no: they say what needs no rerun"),
    ]


def list_stores(config: Config) -> tuple[str, ...]:
    """Return the patterns of signals on another disk."""
    return (f"{config['signals']}/*/*",) if config["signals"] else ()


def find_paths(directory: Path, step: Step) -> list[Path]:
    """Return the existing files and folders of a step, each once; `output/*` stands for the students."""
    found: dict[Path, None] = {}
    for pattern in step.paths:
        anchor = Path(pattern).anchor
        paths = Path(anchor).glob(str(Path(pattern).relative_to(anchor))) if anchor else directory.glob(pattern)
        found |= {path.resolve(): None for path in sorted(paths)}
    others = {(directory / "output" / name).resolve() for name in RESERVED} if step.name == "students" else set()
    return [path for path in found if path not in others]


def read_seconds(directory: Path, rules: Iterable[str]) -> float | None:
    """Return the seconds of the last run of each job of these rules, as Snakemake's benchmarks record them, summed.

    A job that resumed has the time of its last part alone.
    """
    found: list[float] = []
    for rule in rules:
        for path in (directory / "logs" / rule).rglob("*.benchmark.tsv"):
            with open(path, encoding="utf-8", newline="") as file:
                found += [float(row["s"]) for row in csv.DictReader(file, delimiter="\t")]
    return sum(found) if found else None


def measure_usage(config: Config, directory: Path) -> list[Usage]:
    """Return what each step holds in a working directory; steps without files are left out."""
    directory = directory.resolve()
    usages = []
    for step in list_steps(config):
        paths = find_paths(directory, step)
        if paths:
            outside = tuple(path for path in paths if not path.is_relative_to(directory))
            size = sum(map(measure_folder, paths))
            usages.append(Usage(step, size, read_seconds(directory, step.rules), outside))
    return usages


def format_time(seconds: float | None) -> str:
    """Format recorded seconds; `–` if nothing is recorded.

    >>> format_time(None), format_time(8.4), format_time(427), format_time(9000)
    ('–', '8 s', '7 min', '2.5 h')
    """
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def render_usage(usages: Iterable[Usage], directory: Path) -> str:
    """Render a table with a row per step, the total, and the free space."""
    rows = [("step", "on disk", "jobs took", "can be removed")]
    usages = list(usages)
    for usage in usages:
        name = usage.step.name + ("*" if usage.places else "")
        rows.append((name, format_bytes(usage.size), format_time(usage.seconds), usage.step.removal))
    total = sum(usage.size for usage in usages)
    rows.append(("total", format_bytes(total), "", f"{format_bytes(find_free(directory))} free in {directory}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{name:<{widths[0]}}  {size:>{widths[1]}}  {time:>{widths[2]}}  {removal}"
        for name, size, time, removal in rows
    ]
    outside = [f"* {usage.step.name}: {', '.join(map(str, usage.places))}" for usage in usages if usage.places]
    return "\n".join([*lines, *outside])
