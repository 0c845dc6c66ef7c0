import gc
import os
import shlex
import signal
import sys
from functools import partial
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod

# Also if this is a module of another workflow, whose Snakefile is elsewhere.
SCRIPTS = Path(str(workflow.current_basedir)).parent / "scripts"
if not SCRIPTS.is_dir():
    raise WorkflowError(
        f"{workflow.current_basedir}: expected the folder of a clone of Stillhouse; clone the repository and name its "
        "workflow/Snakefile as the module's snakefile"
    )
if workflow.modifier.path_modifier.prefix or workflow.modifier.path_modifier.modifies_prefixes:
    raise WorkflowError("expected a module without prefix and replace_prefix: Stillhouse's jobs read fixed paths")
sys.path.insert(0, str(SCRIPTS))

from distill.common.digest import code_digest, files_digest
from distill.common.errors import InputError
from distill.common.trackers import check_installed
from distill.models.fingerprint import fingerprint_folder
from distill.plan import command_lines, experiment, job_resources, memory_requests, model_checks, pairwise, signals
from distill.plan.schema import check_config
from distill.plan.settings import NAME_PATTERN
from distill.plan.start_cache import StartCache
from distill.report import answers_page, near_duplicates_page, samples_page

# Snakemake keeps all jobs in memory. Looking for garbage among them takes a seventh of the time for 30,000 jobs.
gc.set_threshold(200_000)


def stop(message):
    """End Snakemake with an error message; an exception would add its traceback through the Snakefile."""
    logger.error(f"Error: {message}")
    sys.exit(1)


try:
    config = check_config(config)
    MEMORY = memory_requests.MemoryRequests(config)
except InputError as error:
    stop(error)


START_CACHE = StartCache()

# In a Slurm job, requeue.sh stops the command by SIGUSR1 before the time limit. Snakemake itself must survive the
# signal. It gets a handler because a child process would inherit SIG_IGN.
if "SLURM_JOB_ID" in os.environ and not workflow.is_main_process:
    signal.signal(signal.SIGUSR1, lambda *_: None)
    shell.prefix(f"set -euo pipefail; source {shlex.quote(str(SCRIPTS / 'requeue.sh'))}; ")

if "SLURM_JOB_ID" in os.environ and not workflow.is_main_process and experiment.is_shared(config):
    stop("teacher.vllm.share: expected false with Slurm, where a server and the jobs that use it can be on other nodes")

# The module is loaded wherever the Slurm executor is installed, even if another executor is chosen.
if workflow.is_main_process and "snakemake_executor_plugin_slurm" in sys.modules:
    from distill.plan import slurm_executor

    slurm_executor.install()


# A profile that limits group_slots serializes the jobs within each group; groups do not share the limit.
resource_scopes:
    group_slots="local",


wildcard_constraints:
    category=NAME_PATTERN,
    student=NAME_PATTERN,
    model=NAME_PATTERN,
    signal=NAME_PATTERN,
    kind="predictions|questions|verdicts",


def get_categories():
    """Categories whose raw files exist. The main process warns about the others."""
    missing = experiment.get_missing_files(config)
    files = "\n".join(f"  {category}: {', '.join(paths)} not found" for category, paths in missing.items())
    keys = " and ".join(f"source.{key}" for key in experiment.get_source_format(config).files.values())
    hint = f"(paths are relative to {Path.cwd()}; see {keys} in the configuration)"
    if len(missing) == len(config["categories"]):
        stop(f"No category has its raw files:\n{files}\n{hint}")
    if missing and config["source"]["missing"] == "error":
        stop(f"Raw files are missing, and source.missing is error:\n{files}\n{hint}")
    if missing and workflow.is_main_process:
        logger.warning(f"Categories without raw files are skipped:\n{files}\n{hint}")
    return [category for category in config["categories"] if category not in missing]


CATEGORIES = get_categories()


def check_models():
    """End with the problems that the files of local models show."""
    try:
        problems = model_checks.find_model_problems(config, CATEGORIES)
    except InputError as error:
        problems = [str(error)]
    if problems:
        stop("\n".join(["The models cannot be used:", *problems]))


def check_trackers():
    """End if a tracker is not installed. With conda, jobs have packages of their own; they check them before they start."""
    if DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method:
        return
    try:
        check_installed(config["report_to"])
    except InputError as error:
        stop(error)


def check_tasks():
    """End with what the benchmark tasks lack."""
    # With conda, jobs have environments of their own.
    has_conda = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
    if missing := experiment.find_missing_tasks(config, has_conda):
        stop(missing)


if workflow.is_main_process:
    check_trackers()
    check_models()
    check_tasks()
    if missing := experiment.find_missing_quantizer(config):
        stop(missing)


def check_packages():
    """End with a package that jobs need, or a file that the search for near-duplicates lacks."""
    # With conda, jobs have environments of their own.
    has_conda = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
    missing = experiment.find_missing_prompts(config) or (not has_conda and experiment.find_missing_package(config))
    if missing:
        stop(missing)


if workflow.is_main_process:
    check_packages()

if workflow.is_main_process:
    try:
        costs = pairwise.describe_pairwise(config, CATEGORIES, START_CACHE)
    except InputError as error:
        stop(f"evaluation.pairwise.prompt: {error}")
    for line in [
        experiment.describe_teacher(config),
        *experiment.describe_tasks(config, CATEGORIES),
        *signals.describe_signals(config, CATEGORIES, START_CACHE),
        *costs,
    ]:
        logger.info(line)
