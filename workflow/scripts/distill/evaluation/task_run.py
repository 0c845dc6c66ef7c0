"""Benchmark tasks of lm-evaluation-harness: what a model scores on each document."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distill.common.digest import digest_of
from distill.common.errors import InputError
from distill.evaluation.options import HARNESS, TaskOptions, find_missing_harness
from distill.generation.transformers_engine import ModelSource
from distill.models.batches import is_out_of_memory
from distill.models.chat import ChatTemplate
from distill.models.fingerprint import fingerprint_model

logger = logging.getLogger(__name__)

CPU_BATCH = 8  # requests that are answered at a time on a CPU with batch size `auto`, which looks for the end of memory


def run_tasks(
    source: ModelSource, options: TaskOptions, batch_size: int | None, cache: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Evaluate a model on tasks. Responses of a run that was killed are not asked for again.

    Args:
        source: the model.
        options: the tasks.
        batch_size: requests that are answered at a time; None looks for as many as fit on a GPU.
        cache: folder of cached responses.

    Returns:
        The results of lm-evaluation-harness without its samples, and a row for each document and filter of a task:
        `task`, `filter`, `document` (its number and digest) and `values`, the metrics that are numbers.

    Raises:
        InputError: the package is missing, a task is unknown, or memory runs out.
    """
    if problem := find_missing_harness():
        raise InputError(problem)
    import lm_eval

    manager = load_manager(options)
    model = build_model(source, batch_size)
    try:
        found = lm_eval.simple_evaluate(
            model,
            tasks=list(options.tasks),
            task_manager=manager,
            num_fewshot=options.tasks_fewshot,
            limit=options.tasks_limit,
            apply_chat_template=options.tasks_chat_template,
            use_cache=str(cache / name_cache(source, model.chat, options)),
            bootstrap_iters=0,
        )
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise InputError("memory ran out: lower evaluation.batch_size") from error
        raise
    samples = found.pop("samples")
    return describe_results(found), [row for task, rows in samples.items() for row in iterate_rows(task, rows)]


def load_manager(options: TaskOptions) -> Any:
    """Find all tasks, and load them once, so that what is wrong with them is found before the model is loaded.

    Raises:
        InputError: a task is unknown, comes twice, or has no documents.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=options.tasks_path)
    if unknown := [name for name in options.tasks if name not in manager.all_tasks]:
        where = f", or of {options.tasks_path}" if options.tasks_path else ""
        raise InputError(
            f"evaluation.tasks: expected tasks or groups of lm-evaluation-harness {version(HARNESS)}{where}, found "
            f"{', '.join(unknown)}; `lm-eval ls tasks` lists them"
        )
    try:
        manager.load(list(options.tasks))
    except (ValueError, OSError) as error:
        raise InputError(f"evaluation.tasks: {', '.join(options.tasks)} cannot be loaded: {error}") from error
    return manager


def build_model(source: ModelSource, batch_size: int | None) -> Any:
    """Load the model for lm-evaluation-harness."""
    from distill.evaluation.task_model import TaskModel

    chat, model = source.load_chat(), source.load()
    return TaskModel(model, chat, batch_size or (CPU_BATCH if model.device.type == "cpu" else "auto"))


def name_cache(source: ModelSource, chat: ChatTemplate, options: TaskOptions) -> str:
    """Return the name of the cached responses: a digest of all that decides a response except the request."""
    parts = {"model": fingerprint_model(source.model, source.adapter), "version": version(HARNESS)}
    parts |= {name: getattr(source, name) for name in ("dtype", "quantization")}
    return digest_of(parts | (chat.digest_parts() if options.tasks_chat_template else {}))


def describe_results(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of lm-evaluation-harness's results that do not change from run to run."""
    names = ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples")
    return {name: found[name] for name in names if name in found} | {HARNESS: version(HARNESS)}


def iterate_rows(task: str, samples: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what the documents of a task scored; metrics that are no number, such as counts of words, are left out."""
    for sample in samples:
        values = {name: sample[name] for name in sample["metrics"]}
        yield {
            "task": task,
            "filter": sample["filter"],
            "document": f"{sample['doc_id']}:{sample['doc_hash'][:16]}",
            "values": {name: float(value) for name, value in values.items() if isinstance(value, int | float)},
        }
