"""What a run would do, as a table of categories by steps, read off Snakemake's own dry run."""

import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from distill.common.errors import InputError
from distill.common.names import POOLED
from distill.records.source_formats import SOURCE_FORMATS

# The rules of a step; several jobs of a category may belong to one (a shard, a student, a model each). A step that an
# experiment has no job of is not shown.
STEPS = {
    "download": ("download_model",),
    "mix": tuple(source_format.rule for source_format in SOURCE_FORMATS.values()),
    "prompts": ("make_prompts",),
    "answers": ("generate_answers", "gather_answers"),
    "split": ("split_answers",),
    "signal": ("compute_signal",),
    "init": ("copy_layers",),
    "train": ("train_student",),
    "predict": ("predict_answers", "share_base_answers", "answer_questions", "judge_answers"),
    "score": ("score_predictions",),
    "export": ("export_model", "export_gguf", "write_model_card"),
}
COLOURS = {"done": "32", "to do": "33", "missing input": "31", "–": "90"}

JOB = re.compile(r"^(?:local)?(?:rule|checkpoint) (?P<rule>\w+):$")
FIELD = re.compile(r"^    (?P<name>wildcards|reason): (?P<value>.*)$")
SKIPPED = re.compile(r"^  (?P<category>[\w-]+): (?P<files>.*) not found$")


# Snakemake's reasons, the most telling first, and what they mean to a person.
REASONS = (
    (r"Updated input files: (.*?)(?:;|$)", "changed: {}"),
    (r"Params have changed", "settings, code or models changed"),
    (r"Code has changed", "the rule changed"),
    (r"Set of input files has changed", "other input files"),
    (r"[Ii]ncomplete", "was interrupted"),
    (r"Forced execution", "forced"),
    (r"Missing output files", "not made yet"),
    (r"Input files updated by another job", "follows an earlier step"),
)


@dataclass
class Job:
    """A job that a dry run lists."""

    rule: str
    wildcards: dict[str, str] = field(default_factory=dict)
    reason: str = ""


def parse_dry_run(text: str) -> tuple[list[Job], dict[str, str]]:
    """Jobs that a dry run lists, and the raw files that skipped categories lack."""
    jobs: list[Job] = []
    skipped: dict[str, str] = {}
    for line in text.splitlines():
        if match := JOB.match(line):
            jobs.append(Job(match["rule"]))
        elif (match := FIELD.match(line)) and jobs:
            if match["name"] == "reason":
                jobs[-1].reason = match["value"]
            else:
                jobs[-1].wildcards = dict(pair.split("=", 1) for pair in match["value"].split(", "))
        elif match := SKIPPED.match(line):
            skipped[match["category"]] = match["files"]
    return jobs, skipped


def explain(reason: str) -> str:
    """Snakemake's reason in few words."""
    for pattern, words in REASONS:
        if match := re.search(pattern, reason):
            return words.format(match.group(1) if match.groups() else "")
    return reason


def run_dry(arguments: Sequence[str]) -> tuple[str, str]:
    """Output of two dry runs: of what would run, and of all that there is.

    Raises:
        InputError: Snakemake refuses; its own message.
    """
    command = ["snakemake", *arguments, "--dry-run", "--nocolor"]
    runs = [
        subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for more in ([], ["--forceall"])
    ]
    outputs = [run.communicate()[0] for run in runs]
    for run, output in zip(runs, outputs, strict=True):
        if run.returncode:
            raise InputError(output.strip())
    return outputs[0], outputs[1]


def group_by_cell(jobs: Iterable[Job]) -> dict[tuple[str, str], list[Job]]:
    """Jobs by (category, step), `all` being what is trained for all categories; scores over all are left out."""
    cells = defaultdict(list)
    for job in jobs:
        category = job.wildcards.get("category", POOLED)
        for step, rules in STEPS.items():
            if job.rule in rules and not (category == POOLED and step == "score"):
                cells[category, step].append(job)
    return cells


def paint(text: str, state: str, width: int, colour: bool) -> str:
    """Text padded to a column, in the colour of its state on a terminal."""
    padded = text.ljust(width)
    return f"\033[{COLOURS[state]}m{padded}\033[0m" if colour else padded


def render_table(todo_text: str, all_text: str, colour: bool) -> str:
    """The table: a row a category, a column a step, and why there is something to do.

    What serves all categories has a row `all` after them, where there is any.
    """
    jobs, _ = parse_dry_run(todo_text)
    every, skipped = parse_dry_run(all_text)
    todo, cells = group_by_cell(jobs), group_by_cell(every)
    known = sorted({category for category, _ in cells}, key=lambda category: (category == POOLED, category))
    categories = list(dict.fromkeys([*known, *sorted(skipped)]))
    steps = [step for step in STEPS if any(step == other for _, other in cells)]
    width = max(len(name) for name in ["category", *categories]) + 2
    lines = ["category".ljust(width) + "".join(step.ljust(12) for step in steps) + "why"]
    for category in categories:
        if category in skipped:
            cell = paint("missing input", "missing input", 12 * len(steps), colour)
            lines.append(category.ljust(width) + cell + skipped[category])
            continue
        row = category.ljust(width)
        for step in steps:
            count, total = len(todo.get((category, step), [])), len(cells.get((category, step), []))
            state = ("to do" if count else "done") if total else "–"
            row += paint(f"to do {count}/{total}" if count and total > 1 else state, state, 12, colour)
        lines.append(row + first_reason(category, todo))
    rest = [job.rule for job in jobs if job.rule.startswith(("tabulate", "plot"))]
    lines.append("report".ljust(width) + paint("to do" if rest else "done", "to do" if rest else "done", 12, colour))
    return "\n".join(lines)


def first_reason(category: str, todo: dict[tuple[str, str], list[Job]]) -> str:
    """Why the first step that is to do is to do; what follows from it needs no other reason."""
    for step in STEPS:
        for job in todo.get((category, step), []):
            return f"{step}: {explain(job.reason)}"
    return ""


WORKING_DIRECTORY = re.compile(r"^  Working directory: (.*)$", flags=re.MULTILINE)


# squeue's fields: number, state, running for, nodes, why it waits, working directory, and the comment in which
# Snakemake's executor says which rule or group of rules the job is of, and with which wildcards.
FIELDS = "%i|%T|%M|%N|%r|%Z|%k"


@dataclass
class QueuedJob:
    """A job in the queue; `where` is its node, or why it waits."""

    number: str
    state: str
    where: str
    time: str
    what: str


def find_directory(dry_run: str) -> str | None:
    """The working directory that Snakemake names on top of a dry run."""
    match = WORKING_DIRECTORY.search(dry_run)
    return match[1] if match else None


def ask_queue() -> str | None:
    """The user's jobs as lines of FIELDS; None where there is no Slurm, or where it does not answer."""
    if shutil.which("squeue") is None:
        return None
    done = subprocess.run(["squeue", "--me", "--noheader", f"--format={FIELDS}"], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


def select_jobs(queue: str, directory: str) -> list[QueuedJob]:
    """Those that a Snakemake in this working directory has submitted, running ones first."""
    jobs = []
    for line in queue.splitlines():
        number, state, time, nodes, reason, folder, comment = line.split("|", 6)
        if os.path.realpath(folder) == os.path.realpath(directory) and comment.startswith("rule_"):
            what = comment.removeprefix("rule_").replace("_wildcards_", ": ", 1)
            jobs.append(QueuedJob(number, state.lower(), nodes or reason, time, what))
    return sorted(jobs, key=lambda job: (job.state != "running", len(job.number), job.number))


def render_queue(jobs: list[QueuedJob]) -> str:
    """A line a job, under their counts by state; nothing for none."""
    if not jobs:
        return ""
    states = [job.state for job in jobs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    lines = [f"  {job.number:<12}{job.state:<12}{job.where:<20}{job.time:>12}  {job.what}" for job in jobs]
    return "\n".join([f"Slurm: {counts}", *lines])
