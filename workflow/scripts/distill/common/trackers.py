"""Experiment trackers: the programs that show a job's figures while it runs. Each is a package that may be installed.

A tracker writes into one run for each job. A job that was killed and goes on finds its run by its id, or by the names
that contain the id where a program knows no ids.
"""

import importlib.util
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from distill.common.errors import InputError
from distill.common.options import option

logger = logging.getLogger(__name__)

FOLDER = Path("artifacts/trackers")  # of trackers that write to the disk, in the working directory
EXTRAS = "requirements-extra.txt"
CLOSE_SECONDS = 60.0  # how long a job that ends by itself waits until a tracker has what was reported
STOP_SECONDS = 10.0  # the same of a job that is stopped by a signal, whose time may be short
Values = Mapping[str, float]


@dataclass(frozen=True)
class TrackedRun:
    """A job as trackers show it.

    Attributes:
        project: project, or experiment, that the run belongs to.
        rule: rule of the job.
        name: what the job works on, such as `student_kd/banks`.
        id: 16 hexadecimal digits, the same for a job that was killed and goes on.
        config: the job's settings by name.
        first_step: what is reported now comes after this step: 0, or that of the checkpoint where the job goes on.
    """

    project: str
    rule: str
    name: str
    id: str
    config: Mapping[str, Any]
    first_step: int = 0

    @property
    def unique_name(self) -> str:
        """The name and the start of the id, for programs that know a run by its name alone."""
        return f"{self.name}-{self.id[:8]}"

    @property
    def texts(self) -> dict[str, str]:
        """The settings as texts."""
        return {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            for name, value in self.config.items()
        }


class Tracker(Protocol):
    """One run in a tracker. Whatever its methods raise, the caller repeats the call later."""

    def log(self, values: Values, step: int) -> None:
        """Add values at a step."""

    def add_card(self, text: str, step: int) -> None:
        """Add a model card in Markdown."""

    def finish(self, status: str) -> None:
        """End the run: `finished`, `failed`, or `interrupted` if it will go on."""


class TensorBoard:
    """Event files in a folder of the run; values after `first_step` that a killed job wrote are hidden."""

    def __init__(self, run: TrackedRun, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        place = folder / "tensorboard" / run.unique_name
        self.writer = SummaryWriter(str(place), purge_step=run.first_step + 1)
        rows = "\n".join(f"| {name} | {text} |" for name, text in run.texts.items())
        self.writer.add_text("configuration", f"| setting | value |\n| --- | --- |\n{rows}", run.first_step)

    def log(self, values: Values, step: int) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def add_card(self, text: str, step: int) -> None:
        """See `Tracker`."""
        self.writer.add_text("card", text, step)

    def finish(self, status: str) -> None:
        """See `Tracker`; event files have no status."""
        self.writer.close()


class Trackio:
    """A run in Trackio's SQLite files, or where its variables say, such as TRACKIO_SPACE_ID."""

    def __init__(self, run: TrackedRun, folder: Path):
        os.environ.setdefault("TRACKIO_DIR", str((folder / "trackio").absolute()))  # read by the import
        import trackio

        config = {**run.config, "rule": run.rule, "run_id": run.id}
        self.markdown = trackio.Markdown
        self.run = trackio.init(
            project=run.project,
            name=run.unique_name,
            group=run.rule,
            config=config,
            resume="allow",
            embed=False,
            auto_log_cpu=False,
        )

    def log(self, values: Values, step: int) -> None:
        """See `Tracker`."""
        self.run.log(dict(values), step=step)

    def add_card(self, text: str, step: int) -> None:
        """See `Tracker`."""
        self.run.log({"card": self.markdown(text)}, step=step)

    def finish(self, status: str) -> None:
        """See `Tracker`; Trackio has no status."""
        self.run.finish()


class Wandb:
    """A run of Weights & Biases. The x-axis is `step`: its own counter ignores steps that come a second time."""

    def __init__(self, run: TrackedRun, folder: Path):
        import wandb

        if "WANDB_DIR" not in os.environ:
            folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=run.project,
            id=run.id,
            name=run.name,
            job_type=run.rule,
            config=dict(run.config),
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(folder)),
            settings=wandb.Settings(console="off", finish_timeout=CLOSE_SECONDS, stop_fn=self.refuse_stop),
        )
        self.run.define_metric("*", step_metric="step")

    def log(self, values: Values, step: int) -> None:
        """See `Tracker`."""
        self.run.log({**values, "step": step})

    @staticmethod
    def refuse_stop() -> None:
        """Do without the default, which interrupts the job as Ctrl-C does, without a checkpoint."""
        logger.warning("report_to: wandb asks to stop the run, which has no effect; stop Snakemake instead")

    def add_card(self, text: str, step: int) -> None:
        """See `Tracker`; the card is the run's notes."""
        self.run.notes = text

    def finish(self, status: str) -> None:
        """See `Tracker`."""
        self.run.finish(exit_code=0 if status == "finished" else 1)


class Mlflow:
    """A run of MLflow, in a SQLite file, or where MLFLOW_TRACKING_URI says. MLflow chooses ids: ours is a tag."""

    STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
    ID_TAG = "stillhouse.run"

    def __init__(self, run: TrackedRun, folder: Path):
        from mlflow import MlflowClient

        address = os.environ.get("MLFLOW_TRACKING_URI")
        if not address:
            folder.mkdir(parents=True, exist_ok=True)
        self.client = MlflowClient(tracking_uri=address or f"sqlite:///{(folder / 'mlflow.db').absolute()}")
        experiment = self.client.get_experiment_by_name(run.project)
        place = None if address else (folder / "mlflow").absolute().as_uri()
        number = experiment.experiment_id if experiment else self.client.create_experiment(run.project, place)
        found = self.client.search_runs([number], f"tags.`{self.ID_TAG}` = '{run.id}'", max_results=1)
        if found:
            self.id = found[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
        else:
            tags = {self.ID_TAG: run.id, "stillhouse.rule": run.rule}
            self.id = self.client.create_run(number, run_name=run.name, tags=tags).info.run_id
        self.log_settings(run.texts)

    def log_settings(self, texts: Mapping[str, str]) -> None:
        """Add the settings that the run lacks; MLflow refuses to change the others."""
        from mlflow.entities import Param
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH

        known = self.client.get_run(self.id).data.params
        params = [Param(name, text[:MAX_PARAM_VAL_LENGTH]) for name, text in texts.items() if name not in known]
        for start in range(0, len(params), MAX_PARAMS_TAGS_PER_BATCH):
            self.client.log_batch(self.id, params=params[start : start + MAX_PARAMS_TAGS_PER_BATCH])

    def log(self, values: Values, step: int) -> None:
        """See `Tracker`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def add_card(self, text: str, step: int) -> None:
        """See `Tracker`; the card is the run's description."""
        self.client.set_tag(self.id, "mlflow.note.content", text)

    def finish(self, status: str) -> None:
        """See `Tracker`."""
        self.client.set_terminated(self.id, self.STATUS[status])


@dataclass(frozen=True)
class TrackerType:
    """A kind of tracker.

    Attributes:
        description: where its runs are, for the configuration reference.
        package: what `pip install` and Python's `import` call it.
        open: opens a run, or finds it again, given the folder of trackers that write to the disk.
    """

    description: str
    package: str
    open: Callable[[TrackedRun, Path], Tracker]


TRACKERS = {
    "tensorboard": TrackerType(
        "TensorBoard: event files in `artifacts/trackers/tensorboard`.", "tensorboard", TensorBoard
    ),
    "trackio": TrackerType(
        "Trackio: `artifacts/trackers/trackio`, or another folder, server or Space by its variables `TRACKIO_…`.",
        "trackio",
        Trackio,
    ),
    "wandb": TrackerType(
        "Weights & Biases: its server, after `wandb login`; `WANDB_MODE=offline` keeps the runs in "
        "`artifacts/trackers/wandb`.",
        "wandb",
        Wandb,
    ),
    "mlflow": TrackerType(
        "MLflow: the server of `MLFLOW_TRACKING_URI`, or else `artifacts/trackers/mlflow.db`.", "mlflow", Mlflow
    ),
}


@dataclass(frozen=True)
class Dashboard:
    """The dashboard of a tracker, a server on this machine.

    Attributes:
        place: what it shows, in the folder of trackers.
        arguments: program and arguments, in which `{place}` and `{port}` are replaced.
        variables: environment variables, likewise.
    """

    place: str
    arguments: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)

    def build_command(self, folder: Path, port: int) -> list[str]:
        """Return program and arguments."""
        return [argument.format(place=folder / self.place, port=port) for argument in self.arguments]

    def build_environment(self, folder: Path, port: int) -> dict[str, str]:
        """Return the variables that the program needs."""
        return {name: text.format(place=folder / self.place, port=port) for name, text in self.variables.items()}


DASHBOARDS = {
    "tensorboard": Dashboard(
        "tensorboard",
        ("tensorboard", "--logdir", "{place}", "--host", "127.0.0.1", "--port", "{port}", "--reload_interval", "5"),
    ),
    "trackio": Dashboard(
        "trackio",
        ("trackio", "show", "--host", "127.0.0.1"),
        {"TRACKIO_DIR": "{place}", "GRADIO_SERVER_PORT": "{port}"},
    ),
    "mlflow": Dashboard(
        "mlflow.db",
        (
            *("mlflow", "server", "--backend-store-uri", "sqlite:///{place}"),
            *("--host", "127.0.0.1", "--port", "{port}", "--workers", "1"),
        ),
    ),
}


def find_dashboards(folder: Path) -> list[str]:
    """The trackers with a dashboard that have runs in a folder of trackers."""
    return [name for name, dashboard in DASHBOARDS.items() if (folder / dashboard.place).exists()]


@dataclass(frozen=True)
class TrackerOptions:
    """Where jobs report their figures while they run."""

    report_to: list[str] = option(
        "Experiment trackers that show trainings, the teacher's answers and its signals while they run; each is a "
        "package of its own. See [trackers](../docs/trackers.md).",
        [],
        choices=TRACKERS,
        changes_result=False,
        when="To watch loss and speed in a browser (`make watch`), or to collect runs of several machines.",
    )
    tracking_project: str = option(
        "Project, in MLflow experiment, that the runs in the trackers belong to.",
        "stillhouse",
        changes_result=False,
        pattern="^[A-Za-z0-9][A-Za-z0-9_-]*$",
        when="To tell experiments apart that share a tracker.",
    )


def find_missing(names: list[str]) -> list[str]:
    """The packages of these trackers that are not installed.

    A folder of that name, such as the `wandb` that it writes, can be imported but has no file of its own.
    """
    packages = [TRACKERS[name].package for name in names]
    specs = {package: importlib.util.find_spec(package) for package in packages}
    return [package for package, spec in specs.items() if spec is None or spec.origin is None]


def check_installed(names: list[str]) -> None:
    """Check that these trackers are installed.

    Raises:
        InputError: one is not; names the packages to install.
    """
    if missing := find_missing(names):
        raise InputError(
            f"report_to: expected trackers that are installed, found {', '.join(names)} without "
            f"{'the package ' if len(missing) == 1 else 'the packages '}{' and '.join(missing)}: "
            f"pip install {' '.join(missing)} ({EXTRAS} has tested versions), or remove it from report_to"
        )
