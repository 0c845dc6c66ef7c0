"""Training a student: loss, divergences, trainer, callbacks, checkpoints, FSDP, on-policy sampling, and where the
teacher's side of a batch comes from. May import teacher, generation, models, records and common.
"""
