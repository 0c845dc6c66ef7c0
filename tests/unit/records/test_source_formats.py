"""The registry of source formats: what the plan, the rules and the checks read from it."""

import importlib
import re

import pytest
from running import ROOT

from distill.common.errors import InputError
from distill.plan import command_lines, experiment
from distill.plan.schema import check_config
from distill.records.source_formats import ORIGINS, SOURCE_FORMATS, SourceFormat


def make_config(**source):
    students = {"one": {"model": "owner/s"}}
    return check_config(
        {"categories": ["banks"], "teacher": {"model": "owner/t"}, "students": students, "source": source}
    )


@pytest.fixture
def made_up(monkeypatch):
    options = {"seed": "mix.seed", "fields": "answer.label_fields"}
    entry = SourceFormat("Lines of text.", {"texts": "path"}, "read_texts", options, ("texts",), needs_system=True)
    monkeypatch.setitem(SOURCE_FORMATS, "made_up", entry)
    return entry


@pytest.mark.parametrize("name", SOURCE_FORMATS)
def test_every_script_takes_the_files_and_options_of_its_format(name, monkeypatch, capsys):
    entry = SOURCE_FORMATS[name]
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
        make_config(format="made_up", path="texts.txt")
    assert "source.path: expected a path that contains {category}" in str(error.value)
    assert "source.system: expected text, since source.format is made_up, found nothing" in str(error.value)
    with pytest.raises(InputError, match=r"source.format: expected messages \| alpaca \| made_up, found 'other'"):
        make_config(format="other")


def test_an_unknown_format_does_not_hide_other_problems():
    config = {"categories": ["banks"], "teacher": {"model": "t"}, "students": {"one": {"model": "s"}}}
    with pytest.raises(InputError) as error:
        check_config(config | {"source": {"format": "other"}, "mix_targets": {"teacher": 0.5, "original": 0.6}})
    assert "source.format: expected messages | alpaca, found 'other'" in str(error.value)
    assert "mix_targets: expected shares that sum to 1, found 0.5 + 0.6" in str(error.value)


def test_an_input_without_a_share_has_no_file():
    config = make_config()
    config["mix"]["sft_fraction"] = 0.0
    assert experiment.get_raw_inputs(config, "banks") == {"grpo": ["artifacts/grpo/grpo_banks.jsonl"], "sft": []}
