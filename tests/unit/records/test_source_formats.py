"""The registry of source formats: what the plan, the rules and the checks read from it."""

import importlib
import re
import shlex

import pytest
from running import ROOT

import read_records
from distill.common.errors import InputError
from distill.plan import command_lines, experiment
from distill.plan.schema import check_config
from distill.records.shapes import SHAPES
from distill.records.source_formats import ORIGINS, SOURCE_FORMATS, SourceFormat, choose_format


def make_config(categories=("banks",), **source):
    students = {"one": {"model": "owner/s"}}
    return check_config(
        {"categories": list(categories), "teacher": {"model": "owner/t"}, "students": students, "source": source}
    )


@pytest.fixture
def made_up(monkeypatch):
    options = {"seed": "mix.seed", "fields": "answer.label_fields"}
    entry = SourceFormat("Lines of text.", {"texts": "path"}, "read_texts", options, ("texts",), needs_system=True)
    monkeypatch.setitem(SOURCE_FORMATS, "made_up", entry)
    return entry


@pytest.mark.parametrize("name", SOURCE_FORMATS)
@pytest.mark.parametrize("path", [None, "records.jsonl"])
def test_every_script_takes_the_files_and_options_of_its_format(name, path, monkeypatch, capsys):
    entry = choose_format(name, path)
    monkeypatch.syspath_prepend(str(ROOT / "workflow/scripts"))
    with pytest.raises(SystemExit):
        importlib.import_module(entry.script).main(["--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    expected = ["category", *entry.files, *entry.options, "out"]
    assert {"--" + option.replace("_", "-") for option in expected} <= known


def test_origins_are_those_of_all_formats():
    assert ORIGINS == ("grpo", "sft", "alpaca")


def test_a_new_format_is_known_everywhere(made_up, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_config(format="made_up", path="texts/{category}.txt", system="Answer.")
    assert experiment.get_source_format(config) is made_up
    assert experiment.get_raw_files(config, "banks") == {"texts": "texts/banks.txt"}
    assert experiment.get_all_raw_inputs(config, ["banks", "funds"]) == {
        "texts": ["texts/banks.txt", "texts/funds.txt"]
    }
    assert experiment.get_missing_files(config) == {"banks": ["texts/banks.txt"]}
    config["answer"]["label_fields"] = []
    assert command_lines.mix_flags(config) == "--seed 42"


def test_a_new_formats_needs_are_checked(made_up):
    with pytest.raises(InputError) as error:
        make_config(["banks", "funds"], format="made_up", path="texts.txt")
    assert "source.path: expected a path that contains {category}" in str(error.value)
    assert "source.system: expected text, since source.format is made_up, found nothing" in str(error.value)
    with pytest.raises(InputError, match=r"source.format: expected messages \| .* \| made_up, found 'other'"):
        make_config(format="other")


def test_an_unknown_format_does_not_hide_other_problems():
    config = {"categories": ["banks"], "teacher": {"model": "t"}, "students": {"one": {"model": "s"}}}
    with pytest.raises(InputError) as error:
        check_config(config | {"source": {"format": "other"}, "mix_targets": {"teacher": 0.5, "original": 0.6}})
    assert "source.format: expected messages | alpaca | sharegpt | prompt_completion, found 'other'" in str(error.value)
    assert "mix_targets: expected shares that sum to 1, found 0.5 + 0.6" in str(error.value)


def test_every_format_of_a_single_file_has_a_shape():
    found = {name: choose_format(name, "records.jsonl") for name in SOURCE_FORMATS}
    assert {name for name, entry in found.items() if entry.reads_datasets} == set(SHAPES)
    for name, shape in SHAPES.items():
        entry = found[name]
        assert (entry.script, entry.origins) == ("read_records", (shape.origin,))
        assert entry.has_original_answers == shape.has_original
        assert set(shape.required) <= set(shape.fields)


def test_a_path_takes_the_place_of_grpo_and_sft_records():
    config = make_config(path="data/{category}.parquet", columns={"messages": "chat"}, targets="all")
    assert experiment.get_raw_files(config, "banks") == {"records": "data/banks.parquet"}
    flags = "--format messages --columns 'messages=\"chat\"'"
    config["answer"]["label_fields"] = []
    assert command_lines.mix_flags(config) == flags
    args = read_records.parse_args(shlex.split(f"--category banks --records r --out o {flags}"))
    assert args.columns == {"messages": "chat"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "r.parquet", "grpo": "g_{category}.jsonl"}, "source.grpo: expected nothing beside source.path"),
        ({"grpo": "g_{category}.parquet"}, "source.grpo: expected JSONL, found 'g_{category}.parquet'"),
        ({"sft": "hf:datasets/o/{category}"}, "source.sft: expected JSONL, found 'hf:datasets/o/{category}'"),
        ({"path": "hf:o/n"}, "source.path: expected hf:datasets/OWNER/NAME, optionally with @REVISION and then :SPLIT"),
        ({"path": "hf:datasets/o/n:"}, "source.path: expected hf:datasets/OWNER/NAME"),
        ({"path": "modelscope:datasets/o/n"}, "source.path: expected hf:datasets/OWNER/NAME"),
        ({"columns": {"messages": "chat"}}, "source.columns: expected none, since source.format messages reads no"),
        (
            {"format": "sharegpt", "path": "r.json", "columns": {"conversation": "chat"}},
            "source.columns.conversation: expected a field of source.format sharegpt or of a label: conversations, "
            "system, tools, teacher_prompt, holding_log_delta, label_log_delta, label_delta; did you "
            "mean conversations?",
        ),
        ({"format": "sharegpt"}, "source.path: expected text, since source.format is sharegpt, found nothing"),
        ({"format": "prompt_completion", "path": "r.json", "targets": "all"}, "source.targets: expected last"),
    ],
)
def test_what_a_single_file_needs_is_checked(source, message):
    with pytest.raises(InputError) as error:
        make_config(**source)
    assert message in str(error.value)


def test_a_dataset_is_read_from_its_download_and_never_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_config(["banks", "funds"], format="sharegpt", path="hf:datasets/o/n@v1:{category}/test")
    manifest = "datasets/hf/o/n@v1/banks/test/download.json"
    assert experiment.get_raw_inputs(config, "banks") == {"records": [manifest]}
    assert experiment.get_missing_files(config) == {}


def test_an_input_without_a_share_has_no_file():
    config = make_config()
    config["mix"]["sft_fraction"] = 0.0
    assert experiment.get_raw_inputs(config, "banks") == {"grpo": ["artifacts/grpo/grpo_banks.jsonl"], "sft": []}
