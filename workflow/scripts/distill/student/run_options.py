"""Training options that do not change the trained student, only how the run proceeds."""

from typing import Any

from distill.common.options import list_run_options
from distill.student.options import LaunchOptions, TrainOptions

LAUNCH_OPTIONS = list_run_options(LaunchOptions)


def get_run_options(train: dict[str, Any], runaway: str) -> list[str]:
    """The options of a training that do not change its result.

    `eval_steps` does change it if validations choose the model or stop the training, and `validation_samples` if
    answers that run away do.

    Args:
        train: values of TrainOptions.
        runaway: `on_policy_runaway`.
    """
    uses_samples = runaway == "stop"
    uses_validation = train["best_checkpoint"] or train["early_stopping_patience"] is not None or uses_samples
    decisive = {"eval_steps": uses_validation, "validation_samples": uses_samples}
    return [option for option in list_run_options(TrainOptions) if not decisive.get(option)]
