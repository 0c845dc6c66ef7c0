import os
import shlex
import signal
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

SCRIPTS = Path(workflow.basedir) / "workflow/scripts"
sys.path.insert(0, str(SCRIPTS))

from distill.common.digest import code_digest, files_digest
from distill.common.errors import InputError
from distill.models.fingerprint import fingerprint_folder
from distill.plan import command_lines as commands, experiment
from distill.plan.schema import check_config
from distill.plan.settings import NAME_PATTERN
from distill.report import answers_page

try:
    config = check_config(config)
except InputError as error:
    raise WorkflowError(str(error)) from None


# A Slurm job whose time runs out goes back to the queue, after its command has kept what it has done. The signal for
# that is none of Snakemake's; a handler, since commands would inherit that it is ignored.
if "SLURM_JOB_ID" in os.environ and not workflow.is_main_process:
    signal.signal(signal.SIGUSR1, lambda *_: None)
    shell.prefix(f"set -euo pipefail; source {shlex.quote(str(SCRIPTS / 'requeue.sh'))}; ")

# Where the Slurm executor is installed, and may be chosen.
if workflow.is_main_process and "snakemake_executor_plugin_slurm" in sys.modules:
    from distill.plan import slurm_executor

    slurm_executor.install()


# The jobs of a group come one after the other where a profile limits these; each group has its own.
resource_scopes:
    group_slots="local",


wildcard_constraints:
    category=NAME_PATTERN,
    student=NAME_PATTERN,
    model=NAME_PATTERN,
    signal=NAME_PATTERN,
    kind="predictions|questions",


class Untracked:
    """A parameter that says where or how a job runs, not what comes out: Snakemake does not compare it."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return str(self.text)


def get_script(name):
    """Path of a script, untracked: the digest of its code counts, not where the project lies."""
    return Untracked(shlex.quote(str(SCRIPTS / f"{name}.py")))


def get_code(name):
    """Digest of a script and the library modules it uses; comments and docstrings do not count."""
    return code_digest(SCRIPTS / f"{name}.py")


def get_page_digest():
    """Digest of an HTML page's template, style and script."""
    return files_digest(answers_page.PARTS)


def get_categories():
    """Categories whose raw files are there; which are skipped is said once, in the main process."""
    missing = experiment.get_missing_files(config)
    listed = "\n".join(f"  {category}: {', '.join(paths)} not found" for category, paths in missing.items())
    where = f"(paths are relative to {Path.cwd()}; see source.grpo and source.sft in the configuration)"
    if len(missing) == len(config["categories"]):
        raise WorkflowError(f"No category has its raw files:\n{listed}\n{where}")
    if missing and config["source"]["missing"] == "error":
        raise WorkflowError(f"Raw files are missing, and source.missing is error:\n{listed}\n{where}")
    if missing and workflow.is_main_process:
        logger.warning(f"Categories without raw files are skipped:\n{listed}\n{where}")
    return [category for category in config["categories"] if category not in missing]


CATEGORIES = get_categories()

# What is about to take disk is said first.
if workflow.is_main_process:
    for line in experiment.describe_signals(config, CATEGORIES):
        logger.info(line)


def get_files(models):
    """Files of those models and adapters that the workflow makes itself."""
    return [path for model in models for path in experiment.get_made_files(config, model)]


def get_digests(models):
    """Of the others, the user's own: cheap ones, since Snakemake's checksums of inputs read all weights."""
    return [fingerprint_folder(model) for model in models if not experiment.get_made_files(config, model)]


def is_sharded():
    return config["teacher"]["shards"] > 1


def get_gpus():
    return 0 if config["device"] == "cpu" else 1


def get_model_threads():
    """A few, to feed a GPU and not to load a model a core without one; the demo's models are small enough for that."""
    return 1 if "demo" in config else 4
