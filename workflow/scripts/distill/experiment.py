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


def is_served(config: Config, model: str) -> bool:
    """Whether an evaluated model answers through a server, which gives no likelihoods."""
    return model == "teacher" and config["teacher"]["engine"] == "openai"


def get_teacher_models(config: Config, category: str) -> list[str]:
    """Hub ids and folders that a job with the teacher loads: model and adapter, none where a server answers."""
    found = [config["teacher"]["model"], get_adapter(config, category)]
    return [] if is_served(config, "teacher") else [model for model in found if model]


def get_training_models(config: Config, student: str, category: str) -> list[str]:
    """Hub ids and folders that a training loads: the student, and the teacher where it is online."""
    settings = config["students"][student]
    return [settings["model"], *([] if settings["method"] == "seqkd" else get_teacher_models(config, category))]


def get_predicting_models(config: Config, model: str, category: str) -> list[str]:
    """Hub ids and folders that an evaluated model's answers come from."""
    if model == "teacher":
        return get_teacher_models(config, category)
    return [get_student(config, model)["model"] if is_base(model) else f"output/{model}/{category}"]


def get_made_files(config: Config, model: str) -> list[str]:
    """Files of a model that the workflow itself makes: the demo's or a student's; none of the user's own."""
    if "demo" in config and model in ("models/teacher", "models/student"):
        names = ["config.json", "model.safetensors"]
    elif "demo" in config and model.startswith("models/adapters/"):
        names = ["adapter_config.json", "adapter_model.safetensors"]
    elif model in {f"output/{student}/{name}" for student in config["students"] for name in config["categories"]}:
        names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json"]
    else:
        names = []
    return [f"{model}/{name}" for name in names]


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
