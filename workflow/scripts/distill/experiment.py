"""What an experiment consists of, read off its checked configuration: raw files, adapters, evaluated models."""

from pathlib import Path
from typing import Any

Config = dict[str, Any]


def get_raw_files(config: Config, category: str) -> dict[str, str]:
    """Raw files of a category that the mix takes something from, by source (`grpo`, `sft`)."""
    return {
        source: config["source"][source].format(category=category)
        for source in ("grpo", "sft")
        if config["mix"][f"{source}_fraction"] > 0
    }


def get_missing_files(config: Config) -> dict[str, list[str]]:
    """Raw files that are not there, by category; a category that has all of its files is left out."""
    missing = {
        category: [path for path in get_raw_files(config, category).values() if not Path(path).exists()]
        for category in config["categories"]
    }
    return {category: paths for category, paths in missing.items() if paths}


def get_adapter(config: Config, category: str) -> str | None:
    """The teacher's LoRA checkpoint for a category."""
    adapter = config["teacher"]["adapter"]
    return adapter.format(category=category) if adapter else None


def is_base(model: str) -> bool:
    """Whether an evaluated model's name stands for a student before distillation."""
    return model.endswith("_base")


def get_student(config: Config, model: str) -> dict[str, Any]:
    """Configuration of the student behind an evaluated model's name."""
    return config["students"][model.removesuffix("_base")]


def get_models(config: Config) -> list[str]:
    """Names under output/evaluation: the teacher, then each student followed by itself before distillation."""
    return ["teacher", *(name for student in config["students"] for name in (student, f"{student}_base"))]


def get_first_base(config: Config, model: str) -> str:
    """The `_base` that is evaluated for this one: students of the same model and precision share it."""

    def identity(name: str) -> tuple[str, str]:
        student = get_student(config, name)
        return student["model"], student["train"]["precision"]

    return next(f"{student}_base" for student in config["students"] if identity(student) == identity(model))


def get_evaluated_models(config: Config) -> list[str]:
    """Models that answer the test prompts; a `_base` that another one stands for is none of them."""
    return [model for model in get_models(config) if not is_base(model) or get_first_base(config, model) == model]


def get_sharing_students(config: Config) -> list[str]:
    """Students whose `_base` is evaluated already, under another student's name."""
    return [student for student in config["students"] if f"{student}_base" not in get_evaluated_models(config)]
