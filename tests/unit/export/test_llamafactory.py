"""The export to LLaMA-Factory has the same records and settings, and LLaMA-Factory can read it."""

import json

import pytest
import yaml
from conversations import make_chat, make_conversation
from training_runs import write_splits

import export_llamafactory as script
import write_alpaca
from distill.common.errors import InputError
from distill.records.splits import read_split


@pytest.fixture
def export(tmp_path, records):
    """A function that exports the splits of a folder and returns the folder and the settings."""
    write_splits(tmp_path / "data", records[:7], records[7:])

    def run(*more, data="data"):
        folder = str(tmp_path / data)
        write_alpaca.main(["--data", folder, "--name", "banks", "--out", folder])
        argv = ["--data", folder, "--out", str(tmp_path / "out"), "--name", "kd", "--category", "banks"]
        script.main([*argv, "--model", "owner/student", "--method", "seqkd", *more])
        return tmp_path / data, yaml.safe_load((tmp_path / "out/train.yaml").read_text())

    return run


def get_texts(folder, name):
    """System, prompt, input and answer of each record, by the columns in dataset_info.json."""
    entry = json.loads((folder / "dataset_info.json").read_text())[name]
    records = json.loads((folder / entry["file_name"]).read_text(encoding="utf-8"))
    return [[one[entry["columns"][key]] for key in ("system", "prompt", "query", "response")] for one in records]


def test_records_are_those_of_the_splits(export):
    folder, settings = export()
    assert (settings["dataset"], settings["eval_dataset"]) == ("banks_train", "banks_val")
    for share in ("train", "val"):
        wanted = [[m["content"] for m in record["messages"]] for record in read_split(folder, share)]
        texts = [[system, prompt, "", answer] for system, prompt, answer in wanted]
        assert get_texts(folder, f"banks_{share}") == texts


def test_earlier_turns_are_the_history(tmp_path, records):
    chat = records[0] | make_chat()
    folder = write_splits(tmp_path / "data", [records[1], chat], records[7:])
    write_alpaca.main(["--data", str(folder), "--name", "banks", "--out", str(tmp_path)])
    plain, found = json.loads((tmp_path / "alpaca_train.json").read_text())
    assert found == {
        "instruction": "What is its price?",
        "input": "",
        "output": "It is 0.5.",
        "system": "You are a manager.",
        "history": [["me=0: what do you hold", "JORVR 0"]],
    }
    assert "history" not in plain
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert info["banks_train"]["columns"]["history"] == "history"


def test_records_without_history_have_the_columns_that_they_had(export):
    folder, _ = export()
    info = json.loads((folder / "dataset_info.json").read_text())
    assert set(info["banks_train"]["columns"]) == {"prompt", "query", "response", "system"}


def test_tools_are_refused(tmp_path, records):
    folder = write_splits(tmp_path / "data", [records[1], records[0] | make_conversation()], records[7:])
    with pytest.raises(InputError, match=f"uid {records[0]['uid']}: expected no tools, which the Alpaca format"):
        write_alpaca.main(["--data", str(folder), "--name", "banks", "--out", str(tmp_path)])


def test_a_pooled_student_has_the_records_of_all_its_folders(tmp_path, records):
    write_splits(tmp_path / "a", records[:3], records[3:4])
    write_splits(tmp_path / "b", records[4:9], records[9:])
    folders = [str(tmp_path / name) for name in "ab"]
    write_alpaca.main(["--data", *folders, "--name", "all", "--out", str(tmp_path / "all")])
    prompts = [text[1] for text in get_texts(tmp_path / "all", "all_train")]
    assert prompts == [record["messages"][1]["content"] for record in [*records[:3], *records[4:9]]]


def test_settings_are_those_of_the_student(export):
    lora = ["--lora-rank", "64", "--lora-alpha", "128", "--lora-dropout", "0.05"]
    more = ["--batch-size", "4", "--gradient-accumulation-steps", "4", "--learning-rate", "5e-5", "--epochs", "3"]
    more += ["--eval-steps", "500", "--optimizer", "adamw_bnb_8bit", "--lr-scheduler", "constant"]
    folder, settings = export(*lora, *more, "--template", "qwen")
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
        "warmup_steps": 1,  # a tenth of three steps, one per epoch of seven records
        "dataset_dir": str(folder),
        "template": "qwen",
    }
    assert {name: settings[name] for name in expected} == expected


def test_full_finetuning_without_validation(export, tmp_path, records):
    write_splits(tmp_path / "other", records, [])
    folder, settings = export(data="other")
    assert settings["finetuning_type"] == "full"
    assert not {"lora_rank", "eval_dataset", "eval_strategy"} & settings.keys()
    assert list(json.loads((folder / "dataset_info.json").read_text())) == ["banks_train"]
    assert json.loads((folder / "alpaca_val.json").read_text()) == []


def test_a_cached_signal_and_several_adapters_do_not_matter(export):
    """A pooled student has one of each per category, and one folder of datasets."""
    plain = export()[1]
    cached = ["--teacher-model", "owner/teacher", "--teacher-adapter", "x", "y", "--signal", "topk"]
    assert export("--method", "forward_kl", *cached, "--signal-folders", "a", "b")[1] == plain


def test_several_folders_are_refused(capsys):
    needed = ["--out", "o", "--name", "kd", "--category", "all", "--model", "m", "--method", "seqkd"]
    with pytest.raises(SystemExit):
        script.main(["--data", "a", "b", *needed])
    assert "--data: expected one folder from write_alpaca.py, found 2" in capsys.readouterr().err


def test_rounded_weights_are_refused(export):
    with pytest.raises(InputError, match=r"train.quantization_aware: expected null, .* found int4"):
        export("--quantization-aware", "int4")


def test_llamafactory_reads_the_export(export, tmp_path, models, records, monkeypatch):
    """With its own argument parser and data loader, if the package is installed."""
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
