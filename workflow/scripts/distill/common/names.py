"""Names of evaluated models: a student, the same before distillation, and its variants of fewer bits."""

TEACHER = "teacher"  # the evaluated model of that name
POOLED = "all"  # the category that pools all categories
BASE = "base"
FULL = "full"
SCORED = ("nf4", "int8", "gguf")  # variants that answer otherwise than the student itself, and are scored beside it
VARIANTS = (FULL, *SCORED)
SUFFIXES = (BASE, *SCORED)  # no student's name ends in one of these


def split_name(model: str) -> tuple[str, str | None]:
    """(student, suffix) of an evaluated model's name; without a suffix it is the student itself, or the teacher.

    >>> split_name("student_kd_nf4")
    ('student_kd', 'nf4')
    """
    student, _, suffix = model.rpartition("_")
    return (student, suffix) if student and suffix in SUFFIXES else (model, None)


def is_base(model: str) -> bool:
    """Whether the name stands for a student before distillation."""
    return split_name(model)[1] == BASE


def get_variant(model: str) -> str | None:
    """The exported variant that the name stands for; None of the student itself, its `_base` and the teacher."""
    suffix = split_name(model)[1]
    return suffix if suffix in SCORED else None


def get_weights_name(variant: str) -> str:
    """Name of the file of a variant's weights."""
    return "model.gguf" if variant == "gguf" else "model.safetensors"
