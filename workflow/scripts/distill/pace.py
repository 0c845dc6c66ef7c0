"""Training options that change how a run goes (what it keeps, logs and computes again), not what it ends with."""

PACE = ("save_steps", "save_total_limit", "logging_steps", "eval_steps", "gradient_checkpointing")
