"""The rules' command-line options, made from a checked configuration.

A rule reruns when its options change, so an option that does not change what comes out is none of these.
"""

import shlex
from typing import Any

from distill.experiment import Config, get_adapter, get_student, is_base, is_served
from distill.pace import PACE


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


def prompt_flags(config: Config) -> str:
    """Of make_prompts.py."""
    answer = config["answer"]
    return flags({"label_fields": answer["label_fields"] or None, "answer_key": answer["key"]})


def teacher_flags(config: Config, category: str) -> dict[str, Any]:
    """Which teacher, and in which numbers; those of a server are its own."""
    teacher = config["teacher"]
    if is_served(config, "teacher"):
        return {"model": teacher["model"]}
    return {
        "model": teacher["model"],
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


def training_flags(config: Config, name: str, category: str) -> str:
    """Of train_student.py; the teacher and the divergence are none of seqkd's."""
    student = config["students"][name]
    settings = {"model": student["model"], "method": student["method"]}
    if student["method"] != "seqkd":
        teacher = teacher_flags(config, category)
        teacher["quantization"] = student["teacher_quantization"] or teacher["quantization"]
        settings |= {f"teacher_{option}": value for option, value in teacher.items()}
        settings |= {option: student[option] for option in ("temperature", "alpha")}
        settings |= {"beta": student["beta"]} if student["method"] == "jsd" else {}
    if student["lora"]:
        target = student["lora"]["target"]
        lora = student["lora"] | {"target": target if isinstance(target, list) else [target]}
        settings |= {f"lora_{option}": value for option, value in lora.items()}
    return flags(settings | {option: value for option, value in student["train"].items() if option not in PACE})


def pace_flags(config: Config, name: str) -> str:
    """Of train_student.py: how a run goes; untracked."""
    return flags({option: config["students"][name]["train"][option] for option in PACE})


def predict_flags(config: Config, model: str, category: str) -> str:
    """Of predict_answers.py, for `teacher`, a student, or a student's `_base`."""
    evaluation = config["evaluation"]
    if model == "teacher":
        source = teacher_flags(config, category) | {"engine": config["teacher"]["engine"]}
    else:
        student = get_student(config, model)
        folder = student["model"] if is_base(model) else f"output/{model}/{category}"
        dtypes = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
        source = {"model": folder, "dtype": dtypes[student["train"]["precision"]]}
    sampling = {name: evaluation[name] for name in ("max_new_tokens", "temperature")}
    if evaluation["temperature"]:  # nothing is drawn at 0
        sampling["seed"] = evaluation["seed"]
    is_measured = "ppl" in evaluation["metrics"] and not is_served(config, model)
    return flags(source | sampling | {"likelihood": is_measured, "answer_key": config["answer"]["key"]})


def predict_pace_flags(config: Config, model: str) -> str:
    """Of predict_answers.py: where answers come from and how fast; untracked."""
    return flags({"batch_size": config["evaluation"]["batch_size"]} | server_flags(config, model))


def score_flags(config: Config) -> str:
    """Of score_predictions.py."""
    kept = {name: config["evaluation"][name] for name in ("metrics", "bootstrap", "seed", "tokenize")}
    return flags(kept | {"answer_key": config["answer"]["key"]})
