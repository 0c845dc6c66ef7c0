"""Finding and checking the checkpoints of a training run."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def find_best(history: list[dict[str, Any]]) -> tuple[dict[str, Any], int]:
    """The line of the smallest validation loss, the first of equal ones, and how many validations came after it."""
    lines = [line for line in history if "val_loss" in line]
    best = min(range(len(lines)), key=lambda place: lines[place]["val_loss"])
    return lines[best], len(lines) - 1 - best


def read_state(checkpoint: Path) -> dict[str, Any] | None:
    """trainer_state.json, which is written last: a checkpoint without it is torn."""
    try:
        return json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return None


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint, or None."""
    whole = [(state["global_step"], str(path)) for path in folder.glob("checkpoint-*") if (state := read_state(path))]
    return max(whole)[1] if whole else None


def remove_torn(folder: Path) -> None:
    """Remove checkpoints that are not whole: `save_total_limit` would count them, and remove whole ones."""
    for path in folder.glob("checkpoint-*"):
        if read_state(path) is None:
            logger.warning("%s: not whole, removed", path)
            shutil.rmtree(path)


def find_stop(checkpoint: str | None, patience: int | None) -> int | None:
    """The step after which a run had stopped early before it was ended; None where it had not."""
    state = read_state(Path(checkpoint)) if checkpoint and patience is not None else None
    if not state or not any("val_loss" in line for line in state["log_history"]):
        return None
    return state["global_step"] if find_best(state["log_history"])[1] >= (patience or 0) else None
