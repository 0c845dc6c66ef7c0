"""The rules' command-line options, made from a checked configuration.

A rule reruns when its options change, so an option that does not change what comes out is none of these.
"""

import shlex
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from distill.common.digest import digest_of
from distill.models.hub_names import get_public_name
from distill.plan.experiment import (
    Config,
    get_adapter,
    get_compared_models,
    get_initial_model,
    get_predicting_models,
    get_questions_system,
    get_signal,
    get_signals,
    get_student,
    get_teacher,
    is_served,
)
from distill.student.run_options import LAUNCH, get_pace


def flags(settings: dict[str, Any]) -> str:
    """Settings as a command line.

    >>> flags({"batch_size": 2, "lora_rank": None, "fast": True, "names": ["a", "b"]})
    '--batch-size 2 --fast --names a b'
    """
    parts = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            parts.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            parts.append(shlex.join([flag, *map(str, value)]))
        elif value is not None:
            parts.append(shlex.join([flag, str(value)]))
    return " ".join(parts)


def mix_flags(config: Config) -> str:
    """Of mix_records.py."""
    return flags(config["mix"]) + " " + prompt_flags(config)


def alpaca_flags(config: Config) -> str:
    """Of read_alpaca.py."""
    return flags({"system": config["source"]["system"]})


def split_flags(config: Config) -> str:
    """Of split_answers.py."""
    targets = config["mix_targets"]
    return flags(config["split"] | {"original_fraction": targets["original"] if targets else None})


def prompt_flags(config: Config) -> str:
    """Of make_prompts.py."""
    answer = config["answer"]
    return flags({"label_fields": answer["label_fields"] or None, "answer_key": answer["key"]})


def teacher_flags(config: Config, category: str) -> dict[str, Any]:
    """Which teacher, and in which numbers; those of a server are its own."""
    teacher = config["teacher"]
    if is_served(config, "teacher"):
        return {"model": get_teacher(config)}
    return {
        "model": get_teacher(config),
        "adapter": get_adapter(config, category),
        "dtype": teacher["dtype"],
        "quantization": teacher["quantization"],
    }


def generate_flags(config: Config, category: str) -> str:
    """Of generate_answers.py: what decides the answers."""
    teacher = config["teacher"]
    sampling = {name: value for name, value in teacher["generation"].items() if name != "batch_size"}
    asked = {name: teacher[name] for name in ("engine", "samples", "retries", "keep", "overlong")}
    return flags(teacher_flags(config, category) | sampling | asked | {"answer_key": config["answer"]["key"]})


def asking_flags(config: Config) -> str:
    """Of generate_answers.py: where answers come from and how fast; untracked."""
    size = config["teacher"]["generation"]["batch_size"]
    return flags({"batch_size": size, "cache": config["cache"]} | server_flags(config, "teacher"))


def server_flags(config: Config, model: str) -> dict[str, Any]:
    """How a server is asked for a model's answers; nothing where none is."""
    names = ("base_url", "api_key_env", "concurrency", "timeout", "request_retries")
    return {name: config["teacher"][name] for name in names} if is_served(config, model) else {}


def copy_flags(config: Config, category: str) -> str:
    """Of copy_layers.py."""
    teacher = teacher_flags(config, category)
    return flags({name: teacher[name] for name in ("model", "adapter", "dtype")})


def signal_flags(config: Config, category: str, signal: str) -> str:
    """Of compute_signal.py, for one of the signals' names."""
    return flags(teacher_flags(config, category) | get_signals(config)[signal])


def signal_pace_flags(config: Config) -> str:
    """Of compute_signal.py: how fast; untracked."""
    return flags({"batch_size": config["teacher"]["generation"]["batch_size"]})


def training_flags(config: Config, name: str, categories: Sequence[str]) -> str:
    """Of train_student.py, for a training on these categories; the teacher and the divergence are none of seqkd's."""
    student = config["students"][name]
    settings = {"model": get_initial_model(config, name, categories[0]), "method": student["method"]}
    settings |= {"pool_balance": student["pool_balance"]} if student["pool"] else {}
    if student["method"] != "seqkd":
        settings |= divergence_flags(config, name, categories)
    if student["lora"]:
        target = student["lora"]["target"]
        lora = student["lora"] | {"target": target if isinstance(target, list) else [target]}
        settings |= {f"lora_{option}": value for option, value in lora.items()}
    others = (*get_pace(student["train"]), *LAUNCH)
    return flags(settings | {option: value for option, value in student["train"].items() if option not in others})


def divergence_flags(config: Config, name: str, categories: Sequence[str]) -> dict[str, Any]:
    """What a student learns from besides the answers; of several categories' teachers, the adapters in their order."""
    student = config["students"][name]
    teachers = [teacher_flags(config, category) for category in categories]
    adapters = list(dict.fromkeys(teacher["adapter"] for teacher in teachers))
    teacher = teachers[0] | {"quantization": student["teacher_quantization"] or teachers[0]["quantization"]}
    settings = {f"teacher_{option}": value for option, value in teacher.items()}
    settings |= {"teacher_adapter": adapters} if len(adapters) > 1 else {}
    settings |= {option: student[option] for option in ("temperature", "alpha")}
    settings |= {"beta": student["beta"]} if student["method"] == "jsd" else {}
    settings["signal"] = student["signal"]
    if signal := get_signal(config, name):
        settings |= {"top_k": student["top_k"]} if student["signal"] == "topk" else {}
        folders = [f"artifacts/distill_data/teacher_signal/{category}/{signal}" for category in categories]
        settings["signal_folders"] = folders
    if student["on_policy_fraction"]:
        names = ("fraction", "steps", "max_new_tokens", "temperature")
        settings |= {f"on_policy_{option}": student[f"on_policy_{option}"] for option in names}
    return settings


def pace_flags(config: Config, name: str) -> str:
    """Of train_student.py: how a run goes; untracked."""
    train = config["students"][name]["train"]
    return flags({option: train[option] for option in get_pace(train)})


def get_dtype(config: Config, model: str) -> str:
    """Numbers of a student, its `_base` or a variant when it answers: those of the training."""
    dtypes = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    return dtypes[get_student(config, model)["train"]["precision"]]


def export_flags(config: Config, student: str) -> str:
    """Of export_model.py and export_gguf.py."""
    return flags({"dtype": get_dtype(config, student)})


def card_flags(config: Config, student: str, category: str) -> str:
    """Of write_model_card.py."""
    export = config["export"] or {}
    kept = {name: export.get(name) or None for name in ("license", "datasets", "language")}
    base = config["students"][student]["model"]
    models = {"base_model": get_public_name(base) if isinstance(base, str) else None}
    models |= {"teacher": get_public_name(config["teacher"]["model"])}
    names = {"name": student, "category": category}
    return flags(names | models | kept | {"config_digest": digest_settings(config, student)})


def evaluated_flags(config: Config, model: str, category: str) -> dict[str, Any]:
    """Which model answers, `teacher`, a student, or a student's `_base`, and how."""
    evaluation = config["evaluation"]
    if model == "teacher":
        source = teacher_flags(config, category) | {"engine": config["teacher"]["engine"]}
    else:
        (folder,) = get_predicting_models(config, model, category)
        source = {"model": folder, "dtype": get_dtype(config, model)}
    sampling = {name: evaluation[name] for name in ("max_new_tokens", "temperature")}
    if evaluation["temperature"]:  # nothing is drawn at 0
        sampling["seed"] = evaluation["seed"]
    return source | sampling


def predict_flags(config: Config, model: str, category: str) -> str:
    """Of predict_answers.py, for an evaluated model's name."""
    is_measured = not is_served(config, model) and not {"ppl", "fdistill"}.isdisjoint(config["evaluation"]["metrics"])
    measured = {"likelihood": is_measured, "answer_key": config["answer"]["key"]}
    return flags(evaluated_flags(config, model, category) | measured)


def question_flags(config: Config, model: str, category: str) -> str:
    """Of answer_questions.py, for an evaluated model's name."""
    questions = {"questions": config["evaluation"]["questions"], "system": get_questions_system(config)}
    return flags(evaluated_flags(config, model, category) | questions)


def judge_flags(config: Config, category: str) -> str:
    """Of judge_answers.py."""
    return flags(teacher_flags(config, category))


def judge_pace_flags(config: Config) -> str:
    """Of judge_answers.py: how fast; untracked."""
    return flags({"batch_size": config["evaluation"]["batch_size"]})


def predict_pace_flags(config: Config, model: str) -> str:
    """Of predict_answers.py and answer_questions.py: where answers come from and how fast; untracked."""
    return flags({"batch_size": config["evaluation"]["batch_size"]} | server_flags(config, model))


def score_flags(config: Config) -> str:
    """Of score_predictions.py."""
    kept = {name: config["evaluation"][name] for name in ("metrics", "bootstrap", "seed", "tokenize")}
    return flags(kept | {"answer_key": config["answer"]["key"]})


def compare_flags(config: Config) -> str:
    """Of compare_models.py."""
    return score_flags(config) + " " + flags({"pairs": [":".join(pair) for pair in get_compared_models(config)]})


def demo_flags(config: Config, part: str) -> str:
    """Of the script that makes one of the demo's models; what the splits hold out, it does not learn."""
    split = {"split_seed": config["split"]["seed"]}
    split |= {name: config["split"][name] for name in ("val_fraction", "test_fraction")}
    return flags({"seed": config["demo"]["seed"]} | config["demo"][part] | split)


# They say where and how a run goes, or what is made of its models, not what these are.
WITHOUT_RESULT = {
    "": ("device", "cache", "export"),
    "teacher": ("base_url", "api_key_env", "concurrency", "timeout", "request_retries", "shards"),
    "teacher.generation": ("batch_size",),
    "evaluation": ("batch_size",),
}


def digest_settings(config: Config, student: str) -> str:
    """32 hex digits of a checked configuration: of one student, without what changes no result."""
    kept = deepcopy(config)
    settings = kept["students"][student]
    for option in get_pace(settings["train"]):
        del settings["train"][option]
    kept["students"] = {student: settings}
    for place, names in WITHOUT_RESULT.items():
        part = kept
        for key in filter(None, place.split(".")):
            part = part[key]
        for name in names:
            part.pop(name, None)
    return digest_of(kept)
