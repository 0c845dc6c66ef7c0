"""Adapters as folders that PEFT loads."""

from pathlib import Path
from typing import Any


def write_adapter(model: Any, folder: Path) -> None:
    """Write a PEFT model's adapter, configuration and weights: the same bytes in each run, for it is known by them."""
    for config in model.peft_config.values():
        config.target_modules = sorted(config.target_modules)  # peft has a set, of another order in each process
    model.save_pretrained(folder)
