"""Export a student's training to LLaMA-Factory: records in Alpaca format and the same settings by its names."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from distill.common.errors import InputError
from distill.common.files import dump_json, write_atomically, write_json
from distill.records.conversations import read_conversation
from distill.records.json_array import read_array
from distill.records.splits import read_chat
from distill.student.options import LoraOptions, TrainOptions
from distill.student.student_run import StudentRun

# Values that LLaMA-Factory or its version of transformers names differently.
OPTIMIZERS = {"adamw_bnb_8bit": "adamw_8bit"}
SCHEDULERS = {"constant": "constant_with_warmup"}
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
HISTORY = {"history": "history"}
SHARES = ("train", "val")


def to_alpaca(record: dict[str, Any]) -> dict[str, Any]:
    """Convert a record of a split to Alpaca format, with the last user text as the instruction.

    Earlier turns are the `history`, pairs of a user's and an assistant's text; a single user text has none.

    Raises:
        InputError: the record has tools, which the format cannot hold.
    """
    fields, answer = read_chat(record)
    asked = read_conversation(fields)
    if asked.has_tools:
        expected = "expected no tools, which the Alpaca format of LLaMA-Factory cannot hold"
        raise InputError(f"uid {record['uid']}: {expected}; train with this workflow, or leave such records out")
    texts = [turn["content"] for turn in asked.turns[:-1]]
    history = {"history": [list(pair) for pair in zip(texts[::2], texts[1::2], strict=True)]} if texts else {}
    return {"instruction": fields["prompt"], "input": "", "output": answer, "system": asked.system, **history}


def write_array(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write a JSON array with one record per line, one in memory at a time; return the number of records."""
    count = 0
    with write_atomically(path) as file:
        for count, record in enumerate(records, start=1):
            file.write(("[\n" if count == 1 else ",\n") + dump_json(record))
        file.write("\n]\n" if count else "[]\n")
    return count


def write_datasets(name: str, splits: dict[str, list[dict[str, Any]]], out: Path) -> dict[str, int]:
    """Write alpaca_train.json, alpaca_val.json and dataset_info.json.

    An empty split gives an empty array, and no entry in dataset_info.json.

    Args:
        name: prefix of the dataset names `{name}_train` and `{name}_val`.
        splits: records from `read_split`, by `train` and `val`.
        out: output folder.

    Returns:
        Number of records by split.
    """
    files = {share: f"alpaca_{share}.json" for share in SHARES}
    counts = {share: write_array(out / files[share], map(to_alpaca, splits[share])) for share in SHARES}
    has_history = any(len(record["messages"]) > 3 for records in splits.values() for record in records)
    columns = COLUMNS | (HISTORY if has_history else {})
    info = {f"{name}_{share}": {"file_name": files[share], "columns": columns} for share in SHARES if counts[share]}
    write_json(out / "dataset_info.json", info)
    return counts


def render_lora(lora: LoraOptions | None) -> dict[str, Any]:
    """Settings of the trained weights: a LoRA adapter, or all weights."""
    if lora is None:
        return {"finetuning_type": "full"}
    return {
        "finetuning_type": "lora",
        "lora_rank": lora.rank,
        "lora_dropout": lora.dropout,
        "lora_alpha": int(lora.alpha),
        "lora_target": ",".join(lora.target),
    }


def count_warmup_steps(train: TrainOptions, records: int) -> int:
    """Optimizer steps of the warm-up on one device, since versions of transformers disagree on `warmup_ratio`."""
    step_size = train.batch_size * train.gradient_accumulation_steps
    return math.ceil(train.warmup_ratio * math.ceil(math.ceil(records / step_size) * train.epochs))


def render_optimization(train: TrainOptions, records: int) -> dict[str, Any]:
    """Settings of optimizer, schedule, precision, log and checkpoints."""
    return {
        "num_train_epochs": train.epochs,
        "per_device_train_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": SCHEDULERS.get(train.lr_scheduler, train.lr_scheduler),
        "warmup_steps": count_warmup_steps(train, records),
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": OPTIMIZERS.get(train.optimizer, train.optimizer),
        "bf16": train.precision == "bf16",
        "fp16": train.precision == "fp16",
        "disable_gradient_checkpointing": not train.gradient_checkpointing,
        "seed": train.seed,
        "logging_steps": train.logging_steps,
        "save_steps": train.save_steps,
        "save_total_limit": train.save_total_limit,
    }


def render_validation(run: StudentRun) -> dict[str, Any]:
    """Settings of the validation."""
    steps = run.train.eval_steps
    return {
        "eval_dataset": f"{run.category}_val",
        "per_device_eval_batch_size": run.train.batch_size,
        **({"eval_strategy": "steps", "eval_steps": steps} if steps else {"eval_strategy": "epoch"}),
    }


def render_training(run: StudentRun, data: Path, records: int, has_val: bool, template: str) -> dict[str, Any]:
    """Arguments of `llamafactory-cli train`.

    Args:
        run: the student's training.
        data: folder from `write_datasets`, with datasets named by the run's category.
        records: number of training records.
        has_val: whether there are validation records.
        template: LLaMA-Factory's name of the model's chat template.
    """
    return {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": run.model,
        "template": template,
        "dataset_dir": str(data),
        "dataset": f"{run.category}_train",
        "cutoff_len": run.train.max_length,
        **render_lora(run.lora),
        "output_dir": str(run.out / "output"),
        **render_optimization(run.train, records),
        **(render_validation(run) if has_val else {}),
    }


def export_training(run: StudentRun, data: Path, template: str) -> None:
    """Write train.yaml to the run's output folder; see `render_training` for the arguments.

    Raises:
        InputError: the training rounds weights, which LLaMA-Factory does not.
    """
    if name := run.train.quantization_aware:
        raise InputError(
            f"{run.name}: train.quantization_aware: expected null, since LLaMA-Factory rounds no weights, found {name}"
        )
    info = json.loads((data / "dataset_info.json").read_text(encoding="utf-8"))
    records = sum(1 for _ in read_array(data / "alpaca_train.json"))
    settings = render_training(run, data, records, f"{run.category}_val" in info, template)
    with write_atomically(run.out / "train.yaml") as file:
        yaml.safe_dump(settings, file, sort_keys=False, allow_unicode=True)
