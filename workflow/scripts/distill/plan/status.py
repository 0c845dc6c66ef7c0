"""The status table: what a run would do, by category and step, parsed from Snakemake's dry run and Slurm's queue; and
how far its running jobs are."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distill.common.errors import InputError
from distill.common.names import POOLED
from distill.plan.missing_inputs import find_blocking_files, render_missing
from distill.plan.running_jobs import FoundJob, find_jobs, render_jobs
from distill.plan.schema import check_config
from distill.plan.snakemake_arguments import read_command_line

# Columns of the table, each with the rules that it covers. A step may have several jobs per category, such as one per
# shard, student or model. Steps without jobs are not shown.
STEPS = {
    "download": ("download_model", "download_dataset"),
    "mix": ("mix_records",),
    "prompts": ("make_prompts", "find_near_duplicates"),
    "answers": ("generate_answers", "gather_answers"),
    "split": ("split_answers",),
    "signal": ("compute_signal",),
    "init": ("copy_layers",),
    "train": ("train_student",),
    "predict": ("predict_answers", "predict_models", "share_base_answers", "answer_questions", "judge_answers"),
    "judge": ("judge_pairs",),
    "score": ("score_predictions", "average_scores"),
    "tasks": ("run_tasks", "score_tasks", "average_tasks"),
    "export": ("export_model", "export_compressed", "export_gguf", "write_model_card"),
}
REPORT_RULES = ("tabulate", "plot", "compare", "render", "pool")  # beginnings of the rules that make the report
COLOURS = {"done": "32", "to do": "33", "running": "36", "missing input": "31", "–": "90"}
GAP = 2  # spaces between columns
# A refresh takes new dry runs if they are older than this many times their duration, or if jobs started or ended.
DRY_RUN_SHARE = 10

JOB = re.compile(r"^(?:local)?(?:rule|checkpoint) (?P<rule>\w+?)(?:_\d+)?:$")  # predict_models_1 is one of several
FIELD = re.compile(r"^    (?P<name>wildcards|reason|log): (?P<value>.*)$")
SKIPPED = re.compile(r"^  (?P<category>[\w-]+): (?P<files>.*) not found$")
TEACHER_LINE = re.compile(r"^Teacher: .*$", flags=re.MULTILINE)  # see `describe_teacher`
WORKING_DIRECTORY = re.compile(r"^  Working directory: (.*)$", flags=re.MULTILINE)

# Patterns in Snakemake's reasons and what the table shows for them, the most informative first.
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

# Fields of squeue: job id, state, run time, nodes, reason for waiting, working directory, and the comment in which
# Snakemake's executor names the rule or group and the wildcards.
FIELDS = "%i|%T|%M|%N|%r|%Z|%k"


@dataclass
class Job:
    """A job in a dry run."""

    rule: str
    wildcards: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    log: str = ""


Cells = dict[tuple[str, str], list[Job]]  # jobs by (category, step)


@dataclass
class QueuedJob:
    """A job in Slurm's queue; `where` is its node, or the reason for waiting."""

    number: str
    state: str
    where: str
    time: str
    what: str


def parse_dry_run(text: str) -> tuple[list[Job], dict[str, str]]:
    """Parse the output of a dry run into (its jobs, the missing raw files of skipped categories)."""
    jobs: list[Job] = []
    skipped: dict[str, str] = {}
    for line in text.splitlines():
        if match := JOB.match(line):
            jobs.append(Job(match["rule"]))
        elif (match := FIELD.match(line)) and jobs:
            if match["name"] in ("reason", "log"):
                setattr(jobs[-1], match["name"], match["value"])
            else:
                jobs[-1].wildcards = dict(pair.split("=", 1) for pair in match["value"].split(", "))
        elif match := SKIPPED.match(line):
            skipped[match["category"]] = match["files"]
    return jobs, skipped


def shorten_reason(reason: str) -> str:
    """Shorten Snakemake's reason for a job."""
    for pattern, words in REASONS:
        if match := re.search(pattern, reason):
            return words.format(match.group(1) if match.groups() else "")
    return reason


def run_dry(arguments: Sequence[str]) -> tuple[str, str]:
    """Run two dry runs, in parallel, and return their outputs: the jobs that would run, and all jobs.

    Raises:
        InputError: Snakemake failed; the text is Snakemake's output.
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


def group_by_cell(jobs: Iterable[Job]) -> Cells:
    """Group jobs by (category, step). Jobs for all categories count as category `all`, except their scores."""
    cells = defaultdict(list)
    for job in jobs:
        category = job.wildcards.get("category", POOLED)
        for step, rules in STEPS.items():
            if job.rule in rules and not (category == POOLED and step == "score"):
                cells[category, step].append(job)
    return cells


def paint(text: str, state: str, width: int, colour: bool) -> str:
    """Pad a text to the column width and colour it by its state."""
    padded = text.ljust(width)
    return f"\033[{COLOURS[state]}m{padded}\033[0m" if colour else padded


def describe_cell(to_do: Sequence[Job], every: Sequence[Job], running: Container[str]) -> tuple[str, str]:
    """Return text and state of one category and step, with counts if several jobs belong to it.

    Args:
        to_do: its jobs that are to do.
        every: all of its jobs.
        running: logs of the jobs that are running.
    """
    count = sum(job.log in running for job in every)
    state = "running" if count else ("to do" if to_do else "done") if every else "–"
    if len(every) < 2 or state not in ("running", "to do"):
        return state, state
    runs = f", running {count}" if count else ""
    return f"to do {len(to_do)}/{len(every)}{runs}", state


def find_first_reason(category: str, to_do: Cells) -> str:
    """Return the reason of the first step to do; the later steps follow from it."""
    for step in STEPS:
        for job in to_do.get((category, step), []):
            return f"{step}: {shorten_reason(job.reason)}"
    return ""


def render_table(to_do_text: str, all_text: str, colour: bool, running: Container[str] = ()) -> str:
    """Render a table with a row per category, a column per step, and the reason for the first step to do.

    Jobs for all categories have a row `all`. The teacher and its engine stand above the table.

    Args:
        to_do_text: output of a dry run.
        all_text: output of a dry run with --forceall.
        colour: whether to add terminal colours.
        running: logs of the jobs that are running.
    """
    jobs, _ = parse_dry_run(to_do_text)
    all_jobs, skipped = parse_dry_run(all_text)
    to_do, every = group_by_cell(jobs), group_by_cell(all_jobs)
    with_jobs = sorted({category for category, _ in every}, key=lambda category: (category == POOLED, category))
    categories = list(dict.fromkeys([*with_jobs, *sorted(skipped)]))
    steps = [step for step in STEPS if any(step == other for _, other in every)]
    cells = {
        (category, step): describe_cell(to_do.get((category, step), []), every.get((category, step), []), running)
        for category in categories
        for step in steps
    }
    widths = {step: max(len(step), *(len(cells[category, step][0]) for category in categories)) + GAP for step in steps}
    width = max(len(name) for name in ["category", *categories]) + GAP
    lines = TEACHER_LINE.findall(all_text)[:1]
    lines += ["category".ljust(width) + "".join(step.ljust(widths[step]) for step in steps) + "why"]
    for category in categories:
        if category in skipped:
            row = paint("missing input", "missing input", sum(widths.values()), colour)
            reason = skipped[category]
        else:
            row = "".join(paint(*cells[category, step], widths[step], colour) for step in steps)
            reason = find_first_reason(category, to_do)
        lines.append((category.ljust(width) + row + reason).rstrip())
    report = [job for job in all_jobs if job.rule.startswith(REPORT_RULES)]
    state = "to do" if any(job.rule.startswith(REPORT_RULES) for job in jobs) else "done"
    state = "running" if any(job.log in running for job in report) else state
    lines.append("report".ljust(width) + paint(state, state, len(state), colour))
    return "\n".join(lines)


def find_directory(dry_run: str) -> str | None:
    """Return the working directory that the output of a dry run names."""
    match = WORKING_DIRECTORY.search(dry_run)
    return match[1] if match else None


def read_queue() -> str | None:
    """Return the user's jobs in Slurm's queue, one line of FIELDS each; None if squeue is missing or fails."""
    if shutil.which("squeue") is None:
        return None
    done = subprocess.run(["squeue", "--me", "--noheader", f"--format={FIELDS}"], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


def select_jobs(queue: str, directory: str) -> list[QueuedJob]:
    """Return the jobs that Snakemake submitted from this working directory, running ones first."""
    jobs = []
    for line in queue.splitlines():
        number, state, time, nodes, reason, folder, comment = line.split("|", 6)
        if os.path.realpath(folder) == os.path.realpath(directory) and comment.startswith("rule_"):
            what = comment.removeprefix("rule_").replace("_wildcards_", ": ", 1)
            jobs.append(QueuedJob(number, state.lower(), nodes or reason, time, what))
    return sorted(jobs, key=lambda job: (job.state != "running", len(job.number), job.number))


def render_queue(jobs: list[QueuedJob]) -> str:
    """Render a line per job below their counts by state; an empty text without jobs."""
    if not jobs:
        return ""
    states = [job.state for job in jobs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    lines = [f"  {job.number:<12}{job.state:<12}{job.where:<20}{job.time:>12}  {job.what}" for job in jobs]
    return "\n".join([f"Slurm: {counts}", *lines])


@dataclass
class Plan:
    """The outputs of two dry runs; see `run_dry`.

    Attributes:
        directory: the working directory.
        running: logs of the jobs that were running then.
        seconds: how long the dry runs took.
        time: when they ended, on the monotonic clock.
    """

    to_do: str
    every: str
    directory: Path
    running: set[str]
    seconds: float
    time: float


class Status:
    """The status of a run as text, for one or more looks at it.

    Args:
        arguments: command line of Snakemake.
        colour: whether to add terminal colours.
    """

    def __init__(self, arguments: Sequence[str], colour: bool):
        self.arguments, self.colour = arguments, colour
        self.plan: Plan | None = None

    def render(self) -> str:
        """Render the table, the running jobs and the Slurm queue; dry runs are repeated as DRY_RUN_SHARE says.

        Raises:
            InputError: Snakemake's dry run failed for another reason than missing raw files.
        """
        if self.plan is None or self.is_old(self.plan):
            try:
                self.plan = self.make_plan()
            except InputError as error:
                self.plan = None
                return self.explain_failure(error)
        plan, jobs = self.plan, find_jobs(self.plan.directory)
        running = find_running(jobs)
        parts = [
            render_table(plan.to_do, plan.every, self.colour, running),
            render_jobs(jobs, {job.log for job in parse_dry_run(plan.to_do)[0]}),
            render_queue(select_jobs(read_queue() or "", str(plan.directory))),
        ]
        return "\n\n".join(filter(None, parts))

    def is_old(self, plan: Plan) -> bool:
        """Whether the dry runs must be repeated."""
        is_due = time.monotonic() - plan.time >= DRY_RUN_SHARE * plan.seconds
        return is_due or find_running(find_jobs(plan.directory)) != plan.running

    def make_plan(self) -> Plan:
        """Make the dry runs."""
        started = time.monotonic()
        to_do, every = run_dry(self.arguments)
        directory = Path(find_directory(to_do) or ".")
        now = time.monotonic()
        return Plan(to_do, every, directory, find_running(find_jobs(directory)), now - started, now)

    def explain_failure(self, error: InputError) -> str:
        """Return a table of what is missing if dry runs fail because of that; raise the error if not."""
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # Snakemake has said what is wrong with its command line
                config, directory = read_command_line(self.arguments)
            with contextlib.chdir(directory):
                config = check_config(config)
                if missing := find_blocking_files(config):
                    return render_missing(config, missing)
        except (Exception, SystemExit):
            raise error from None
        raise error


def find_running(jobs: Iterable[FoundJob]) -> set[str]:
    """Return the logs of the jobs that are running."""
    return {job.log for job in jobs if job.is_running}
