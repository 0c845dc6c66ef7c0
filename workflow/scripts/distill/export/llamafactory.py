"""A student's training for LLaMA-Factory: the same targets in Alpaca format, and the same settings in its words."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from distill.common.files import dump_json, write_atomically, write_json
from distill.records.alpaca import read_array

OPTIMIZERS = {"adamw_bnb_8bit": "adamw_8bit"}
SCHEDULERS = {"constant": "constant_with_warmup"}
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
SHARES = ("train", "val")


def to_alpaca(record: dict[str, Any]) -> dict[str, str]:
    """A record of a split in Alpaca format, the whole prompt as instruction."""
    system, prompt, answer = (message["content"] for message in record["messages"])
    return {"instruction": prompt, "input": "", "output": answer, "system": system}


def write_array(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write a JSON array, one record a line and in memory at a time; returns how many."""
    count = 0
    with write_atomically(path) as file:
        for count, record in enumerate(records, start=1):
            file.write(("[\n" if count == 1 else ",\n") + dump_json(record))
        file.write("\n]\n" if count else "[]\n")
    return count


def warmup_steps(options: dict[str, Any], records: int) -> int:
    """Optimizer steps of the warm-up on one device; transformers' releases disagree on how a share is given."""
    size = options["batch_size"] * options["gradient_accumulation_steps"]
    return math.ceil(options["warmup_ratio"] * math.ceil(math.ceil(records / size) * options["epochs"]))


def write_datasets(name: str, splits: dict[str, list[dict[str, Any]]], out: Path) -> dict[str, int]:
    """Write alpaca_train.json, alpaca_val.json and dataset_info.json; returns the records of each split.

    An empty split is a file without records, and no dataset.

    Args:
        name: of the datasets, `{name}_train` and `{name}_val`.
        splits: records of `read_split`, by `train` and `val`.
    """
    files = {share: f"alpaca_{share}.json" for share in SHARES}
    counts = {share: write_array(out / files[share], map(to_alpaca, splits[share])) for share in SHARES}
    info = {f"{name}_{share}": {"file_name": files[share], "columns": COLUMNS} for share in SHARES if counts[share]}
    write_json(out / "dataset_info.json", info)
    return counts


def render_training(options: dict[str, Any], data: Path, has_val: bool, records: int, template: str) -> dict[str, Any]:
    """Arguments of `llamafactory-cli train`.

    Args:
        options: of train_student.py, by name.
        data: folder of `write_datasets`, named as the options' category.
        has_val: whether there are validation records.
        records: to train on.
        template: LLaMA-Factory's name of the model's chat template.
    """
    is_lora = options["lora_rank"] is not None
    settings: dict[str, Any] = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": options["model"],
        "template": template,
        "dataset_dir": str(data),
        "dataset": f"{options['category']}_train",
        "cutoff_len": options["max_length"],
        "finetuning_type": "lora" if is_lora else "full",
    }
    if is_lora:
        settings |= {name: options[name] for name in ("lora_rank", "lora_dropout")}
        settings |= {"lora_alpha": int(options["lora_alpha"]), "lora_target": ",".join(options["lora_target"])}
    settings |= {
        "output_dir": str(Path(options["out"]) / "output"),
        "num_train_epochs": options["epochs"],
        "per_device_train_batch_size": options["batch_size"],
        "gradient_accumulation_steps": options["gradient_accumulation_steps"],
        "learning_rate": options["learning_rate"],
        "lr_scheduler_type": SCHEDULERS.get(options["lr_scheduler"], options["lr_scheduler"]),
        "warmup_steps": warmup_steps(options, records),
        "weight_decay": options["weight_decay"],
        "max_grad_norm": options["max_grad_norm"],
        "optim": OPTIMIZERS.get(options["optimizer"], options["optimizer"]),
        "bf16": options["precision"] == "bf16",
        "fp16": options["precision"] == "fp16",
        "disable_gradient_checkpointing": not options["gradient_checkpointing"],
        "seed": options["seed"],
        "logging_steps": options["logging_steps"],
        "save_steps": options["save_steps"],
        "save_total_limit": options["save_total_limit"],
    }
    if has_val:
        by_step = {"eval_strategy": "steps", "eval_steps": options["eval_steps"]}
        settings |= {"eval_dataset": f"{options['category']}_val", "per_device_eval_batch_size": options["batch_size"]}
        settings |= by_step if options["eval_steps"] else {"eval_strategy": "epoch"}
    return settings


def export_training(options: dict[str, Any], data: Path, out: Path, template: str) -> None:
    """Write train.yaml for the datasets in a folder; arguments as of `render_training`."""
    info = json.loads((data / "dataset_info.json").read_text(encoding="utf-8"))
    records = sum(1 for _ in read_array(data / "alpaca_train.json"))
    has_val = f"{options['category']}_val" in info
    settings = render_training(options, data, has_val, records, template)
    with write_atomically(out / "train.yaml") as file:
        yaml.safe_dump(settings, file, sort_keys=False, allow_unicode=True)
