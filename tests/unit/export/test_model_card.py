"""Cards of exported models: their metadata for the hub, and the digest of the settings."""

import pytest
from model_cards import make_config, write_card

from distill.common.errors import InputError
from distill.evaluation.score_table import Score
from distill.export.model_card import explain_means, format_scores, is_hub_id, read_training
from distill.plan.command_lines import digest_settings


def test_a_card_describes_the_model_and_its_scores(tmp_path):
    config = make_config(export={"license": "apache-2.0", "language": ["zh"], "datasets": ["owner/a", "owner/b"]})
    card = write_card(tmp_path, config)
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"], data["library_name"]) == (
        "owner/student",
        "quantized",
        "gguf",
    )
    assert (data["license"], data["language"], data["datasets"]) == ("apache-2.0", ["zh"], ["owner/a", "owner/b"])
    assert {(one.metric_type, one.metric_value) for one in card.data.eval_results} == {("bleu", 24.5), ("ppl", 2.0)}
    assert "| `kd_gguf` | 2.00 [1.50, 3.00] | 24.5 [23.5, 25.5] | 20 |" in card.text
    assert "| `teacher` | 2.00 [1.50, 3.00] | 30.0 [29.0, 31.0] | 20 |" in card.text
    assert "on 90 training and\n10 validation records" in card.text
    assert "\n\n## Warnings\n\n- The student reads &lt;think&gt;.\n\n## Training\n" in card.text
    assert digest_settings(config, "kd") in card.text
    assert "ollama create" in card.text


def test_variant_full_is_a_finetune_of_its_base_model(tmp_path):
    card = write_card(tmp_path, make_config(student={"model": {"init": "copy_layers", "layers": 2}}), "full")
    assert card.data.base_model == "owner/teacher"  # the student was initialized with its layers
    assert card.data.to_dict()["base_model_relation"] == "finetune"
    assert {one.metric_value for one in card.data.eval_results} == {25.0, 2.0}
    assert "license" not in card.data.to_dict()


def test_the_card_of_a_replica_explains_the_mean_over_seeds():
    figures = [
        Score("kd", "banks", "bleu", 25.0, 24.0, 26.0, 20, 3, 0.75),
        Score("kd-seed7", "banks", "bleu", 26, 25, 27, 20),
    ]
    assert "| `kd` | 25.0 ± 0.8 [24.0, 26.0] | 20 |" in format_scores(figures)
    assert "`kd` is the mean over\n3 trainings of this student, each with another seed" in explain_means(figures)
    assert explain_means(figures[1:]) == ""


def test_a_folder_is_not_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("models/student")
    (tmp_path / "models/student").mkdir(parents=True)
    assert not any(map(is_hub_id, ("models/student", "/a/b", "./a", "a", "a/b/c", "modelscope:a/b", None)))


def test_a_missing_training_card_is_an_error(tmp_path):
    with pytest.raises(InputError, match="expected the card of a training, found no file"):
        read_training(tmp_path / "README.md")


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({"device": "cpu", "cache": "elsewhere", "export": {"license": "mit"}}, False),
        ({"student": {"train": {"save_steps": 7}}}, False),
        ({"evaluation": {"batch_size": 4, "models_per_job": 4}}, False),
        ({"student": {"train": {"epochs": 7}}}, True),
        ({"split": {"seed": 7}}, True),
    ],
)
def test_the_digest_covers_what_determines_a_model(changes, counts):
    config = make_config(**changes)
    assert (digest_settings(config, "kd") != digest_settings(make_config(), "kd")) == counts
    more = config | {"students": config["students"] | {"other": config["students"]["kd"]}}
    assert digest_settings(more, "kd") == digest_settings(config, "kd")
