"""The hand-over to LLaMA-Factory: the same records and settings, and that package's own reading of them."""

import json

import pytest
import yaml
from training_runs import write_splits

import export_llamafactory as script
from distill.splits import read_split


@pytest.fixture
def export(tmp_path, records):
    """Export with options of train_student.py; the folder and its settings."""
    write_splits(tmp_path / "data", records[:7], records[7:])

    def run(*more, data="data"):
        out = tmp_path / "out"
        argv = ["--data", str(tmp_path / data), "--out", str(out), "--name", "kd", "--category", "banks"]
        script.main([*argv, "--model", "owner/student", "--method", "seqkd", *more])
        return out, yaml.safe_load((out / "train.yaml").read_text())

    return run


def test_records_are_those_of_the_splits(export, tmp_path):
    out, settings = export()
    info = json.loads((out / "dataset_info.json").read_text())
    assert settings["dataset"] == "kd_banks_train"
    assert settings["eval_dataset"] == "kd_banks_val"
    for share in ("train", "val"):
        entry = info[f"kd_banks_{share}"]
        found = json.loads((out / entry["file_name"]).read_text())
        columns = entry["columns"]
        texts = [[one[columns[name]] for name in ("system", "prompt", "query", "response")] for one in found]
        wanted = [[m["content"] for m in record["messages"]] for record in read_split(tmp_path / "data", share)]
        assert texts == [[system, prompt, "", answer] for system, prompt, answer in wanted]


def test_settings_are_those_of_the_student(export):
    lora = ["--lora-rank", "64", "--lora-alpha", "128", "--lora-dropout", "0.05"]
    more = ["--batch-size", "4", "--gradient-accumulation-steps", "4", "--learning-rate", "5e-5", "--epochs", "3"]
    more += ["--eval-steps", "500", "--optimizer", "adamw_bnb_8bit", "--lr-scheduler", "constant"]
    out, settings = export(*lora, *more, "--template", "qwen")
    expected = {
        "model_name_or_path": "owner/student",
        "finetuning_type": "lora",
        "lora_rank": 64,
        "lora_alpha": 128,
        "lora_dropout": 0.05,
        "lora_target": "all",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "learning_rate": 5e-5,
        "num_train_epochs": 3.0,
        "lr_scheduler_type": "constant_with_warmup",
        "optim": "adamw_8bit",
        "eval_strategy": "steps",
        "eval_steps": 500,
        "cutoff_len": 2048,
        "bf16": True,
        "fp16": False,
        "disable_gradient_checkpointing": False,
        "warmup_steps": 1,  # a tenth of the three steps that seven records are, an epoch each
        "dataset_dir": str(out),
        "template": "qwen",
    }
    assert {name: settings[name] for name in expected} == expected


def test_a_student_of_all_weights_without_validation(export, tmp_path, records):
    write_splits(tmp_path / "other", records, [])
    out, settings = export(data="other")
    assert settings["finetuning_type"] == "full"
    assert not {"lora_rank", "eval_dataset", "eval_strategy"} & settings.keys()
    assert list(json.loads((out / "dataset_info.json").read_text())) == ["kd_banks_train"]
    assert json.loads((out / "val.json").read_text()) == []


def test_llamafactory_reads_it_itself(export, tmp_path, models, records, monkeypatch):
    """Its own argument parser and data loader, where the package is installed."""
    pytest.importorskip("llamafactory")
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    _, settings = export("--precision", "fp32", "--lora-rank", "4", "--model", models["student"])
    model, data, training, *_ = get_train_args(settings | {"use_cpu": True, "output_dir": str(tmp_path / "lf")})
    loaded = load_tokenizer(model)
    template = get_template_and_fix_tokenizer(loaded["tokenizer"], data)
    found = get_dataset(template, model, data, training, stage="sft", **loaded)
    assert (len(found["train_dataset"]), len(found["eval_dataset"])) == (7, 3)
    labels = [token for token in found["train_dataset"][0]["labels"] if token >= 0]
    assert records[0]["messages"][2]["content"] in loaded["tokenizer"].decode(labels)
