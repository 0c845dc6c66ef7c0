"""Training options that change how a run goes (what it keeps, logs and computes again), not what it ends with."""

from typing import Any

PACE = (
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "eval_steps",
    "gradient_checkpointing",
    "strategy",
    "fsdp_offload",
)


LAUNCH = ("nodes", "gpus_per_node")  # of the command that starts the processes


def get_pace(train: dict[str, Any]) -> list[str]:
    """Those of a training; where validations choose the model or the end, how often they come decides what it is."""
    is_decided = train["best_checkpoint"] or train["early_stopping_patience"] is not None
    return [option for option in PACE if not (option == "eval_steps" and is_decided)]
