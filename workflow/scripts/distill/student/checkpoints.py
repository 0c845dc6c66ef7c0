"""The checkpoints of a training run: the last complete one, and what its log says."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def find_best(history: list[dict[str, Any]]) -> tuple[dict[str, Any], int]:
    """The log line with the lowest validation loss, the first of equal ones, and the number of validations after it."""
    lines = [line for line in history if "val_loss" in line]
    best = min(range(len(lines)), key=lambda place: lines[place]["val_loss"])
    return lines[best], len(lines) - 1 - best


def read_state(checkpoint: Path) -> dict[str, Any] | None:
    """trainer_state.json; None if the checkpoint is incomplete, since this file is written last."""
    try:
        return json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return None


def find_last_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint of a run, if there is one."""
    steps = {path: state["global_step"] for path in folder.glob("checkpoint-*") if (state := read_state(path))}
    return max(steps, key=lambda path: steps[path], default=None)


def find_others(folder: Path) -> list[Path]:
    """The last complete checkpoints of the other runs that have their folders beside a run's."""
    last = [find_last_checkpoint(other) for other in sorted(folder.parent.glob("*")) if other != folder]
    return [checkpoint for checkpoint in last if checkpoint]


def remove_incomplete(folder: Path) -> None:
    """Remove incomplete checkpoints, which `save_total_limit` would count in place of complete ones."""
    for path in folder.glob("checkpoint-*"):
        if read_state(path) is None:
            logger.warning("%s: removed an incomplete checkpoint", path)
            shutil.rmtree(path)


def find_early_stop(checkpoint: Path | None, patience: int | None) -> int | None:
    """The step after which early stopping ended the run; None if it did not.

    Args:
        checkpoint: the last checkpoint of the run.
        patience: validations without a lower loss after which training stops; None never stops early.
    """
    state = read_state(checkpoint) if checkpoint and patience is not None else None
    if not state or not any("val_loss" in line for line in state["log_history"]):
        return None
    return state["global_step"] if find_best(state["log_history"])[1] >= (patience or 0) else None
