"""A made-up entry in each registry is found by everything that reads it, with no other change.

What an entry does once it is chosen is tested where the registry is: a method trains in tests/unit/student, a group of
metrics reaches the tables and figures in tests/unit/evaluation, an engine answers in tests/unit/generation, and a
variant is exported in tests/unit/export.
"""

import dataclasses

import pytest
import yaml
from running import ROOT

import predict_answers
import score_predictions
import train_student
from distill.common.errors import InputError
from distill.common.trackers import TRACKERS
from distill.common.variants import VARIANTS
from distill.evaluation.metrics import GROUPS
from distill.generation.engine import ENGINES
from distill.plan import experiment
from distill.plan.config_reference import render_schema, update_reference
from distill.plan.schema import check_config
from distill.records.source_formats import SOURCE_FORMATS
from distill.student.divergences import METHODS

CONFIG = {"categories": ["banks"], "teacher": {"model": "t"}, "students": {"kd": {"model": "s"}}}
# Registry, an entry to copy, the key whose values it lists, and a configuration that chooses the made-up entry.
REGISTRIES = {
    "method": (METHODS, "forward_kl", {"students": {"kd": {"model": "s", "method": "made_up"}}}),
    "engine": (ENGINES, "transformers", {"teacher": {"model": "t", "engine": "made_up"}}),
    "metrics": (GROUPS, "bleu", {"evaluation": {"metrics": ["made_up"]}}),
    "variants": (VARIANTS, "nf4", {"export": {"variants": ["made_up"]}}),
    "format": (SOURCE_FORMATS, "messages", {"source": {"format": "made_up"}}),
    "report_to": (TRACKERS, "trackio", {"report_to": ["made_up"]}),
}


@pytest.fixture(params=REGISTRIES)
def chosen(request, monkeypatch):
    """The name of a registry, and a configuration that chooses a made-up entry in it."""
    registry, like, changes = REGISTRIES[request.param]
    with pytest.raises(InputError, match="expected .*, found 'made_up'"):
        check_config(CONFIG | changes)
    text = (
        {"summary": "A made-up entry.", "limits": ""} if registry is VARIANTS else {"description": "A made-up entry."}
    )
    entry = dataclasses.replace(registry[like], **text)
    monkeypatch.setitem(registry, "made_up", entry)
    return request.param, CONFIG | changes


def test_the_configuration_accepts_it(chosen):
    _, config = chosen
    check_config(config)
    assert "made_up" in yaml.safe_load(render_schema()).__repr__()


def test_the_reference_describes_it(chosen):
    key, _ = chosen
    text = (ROOT / "config/README.md").read_text(encoding="utf-8")
    assert "made_up" not in text
    new = update_reference(text)
    assert "- `made_up`: A made-up entry." in new
    (row,) = [line for line in new.split("\n") if line.startswith("| `") and f"{key}` |" in line and "made_up" in line]
    assert " made_up " in row.replace(",", " ")


@pytest.mark.parametrize(
    ("registry", "main", "argv"),
    [
        ("method", train_student.parse_args, ["--method", "made_up", "--teacher-model", "t"]),
        ("engine", predict_answers.parse_args, ["--engine", "made_up"]),
        ("metrics", score_predictions.parse_args, ["--metrics", "made_up"]),
        ("report_to", train_student.parse_args, ["--method", "seqkd", "--report-to", "made_up"]),
    ],
)
def test_the_command_line_accepts_it(registry, main, argv, monkeypatch):
    entries, like, _ = REGISTRIES[registry]
    needed = {
        "method": ["--data", "d", "--out", "o", "--name", "n", "--category", "c", "--model", "m"],
        "engine": ["--test", "t", "--category", "c", "--out", "o", "--model", "m"],
        "metrics": ["--predictions", "p", "--out", "o"],
        "report_to": ["--data", "d", "--out", "o", "--name", "n", "--category", "c", "--model", "m"],
    }[registry]
    with pytest.raises(SystemExit):
        main([*needed, *argv])
    monkeypatch.setitem(entries, "made_up", entries[like])
    assert "made_up" in str(vars(main([*needed, *argv])))


def test_a_made_up_variant_is_scored_as_a_model_of_its_own(monkeypatch):
    monkeypatch.setitem(VARIANTS, "made_up", VARIANTS["nf4"])
    config = check_config(CONFIG | {"export": {"variants": ["made_up"]}})
    assert "kd_made_up" in experiment.get_models(config)
    with pytest.raises(InputError, match="_made_up"):
        check_config(CONFIG | {"students": {"kd_made_up": {"model": "s"}}})


def test_a_made_up_engine_is_asked_by_what_it_can_do(monkeypatch):
    """A third engine needs no new condition: what it can do decides which files its jobs read."""
    config = CONFIG | {"teacher": {"model": "t", "engine": "made_up"}}
    for loads_weights in (True, False):
        engine = dataclasses.replace(ENGINES["transformers"], loads_weights=loads_weights)
        monkeypatch.setitem(ENGINES, "made_up", engine)
        students = {"kd": {"model": "s", "method": "forward_kl" if loads_weights else "seqkd"}}
        filled = check_config(config | {"students": students})
        assert experiment.get_teacher_models(filled, "banks") == (["t"] if loads_weights else [])
