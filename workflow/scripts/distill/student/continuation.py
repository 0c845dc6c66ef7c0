"""Training that continues from the student of the previous training (`train.continue_from: previous`).

Snakemake removes a student's folder before it trains the student again. A training with this option therefore keeps a
copy of its student, hard links where the file system allows, from which the next one with other records continues.
"""

import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from distill.common.files import replace_directory, write_json
from distill.models.fingerprint import fingerprint_model
from distill.student.student_run import StudentRun

logger = logging.getLogger(__name__)

FACTS = "previous.json"


def previous_folder(run: StudentRun) -> Path:
    """Folder of the copy, beside the checkpoints, which are removed at the end of a training."""
    return run.checkpoints / ".previous" / run.name / run.category


def describe_base(run: StudentRun) -> dict[str, Any]:
    """What two trainings must have in common: the model before distillation, and the shape of the LoRA adapter."""
    lora = dataclasses.asdict(run.lora) if run.lora else None
    return json.loads(json.dumps({"model": fingerprint_model(run.model), "lora": lora}))


def find_previous(run: StudentRun) -> Path | None:
    """The student to continue from; None to begin with the model before distillation."""
    if run.train.continue_from != "previous":
        return None
    folder = previous_folder(run)
    if not (folder / FACTS).exists():
        logger.info("no student of a previous training is kept in %s: starting from %s", folder, run.model)
        return None
    if read_facts(folder)["base"] != describe_base(run):
        logger.warning(
            "%s has another base model or other LoRA options: not continuing from it, but starting from %s",
            folder,
            run.model,
        )
        return None
    logger.info("continuing from the student of the previous training in %s", folder)
    return folder


def read_facts(folder: Path) -> dict[str, Any]:
    """The base of a kept student, and the number of `trainings` that it went through."""
    return json.loads((folder / FACTS).read_text(encoding="utf-8"))


def count_trainings(previous: Path | None) -> int:
    """The number of trainings that the student to continue from went through."""
    return read_facts(previous)["trainings"] if previous else 0


def keep_student(run: StudentRun, previous: Path | None) -> None:
    """Keep a copy of a written student for the next training, if that is configured.

    Args:
        run: the options.
        previous: the student that this training continued from, from `find_previous`.
    """
    if run.train.continue_from != "previous":
        return
    trainings = count_trainings(previous) + 1
    with replace_directory(previous_folder(run)) as folder:
        shutil.copytree(run.out, folder, copy_function=link_or_copy, dirs_exist_ok=True)
        write_json(folder / FACTS, {"base": describe_base(run), "trainings": trainings})


def link_or_copy(source: str, target: str) -> None:
    """Link a file; copy it where the file system has no hard links, or `target` is on another one."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
