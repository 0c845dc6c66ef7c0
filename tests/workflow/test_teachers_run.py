"""Categories with teachers of different base models, and a pooled student that learns from all of them."""

import json
import shutil

import pytest
from running import CONFIG, planned, read_lines

TARGETS = (
    "output/pooled/all/model.safetensors",
    *(f"output/evaluation/teacher/{category}.predictions.jsonl" for category in ("banks", "households")),
)
SIGNAL = "artifacts/distill_data/teacher_signal/{}/topk_8_t2/index.json"
OWN = {"banks": {"model": "models/wide", "adapter": None, "generation": {"max_new_tokens": 12}}}
POOLED = CONFIG["students"]["student_kd"] | {"pool": True, "signal": "topk", "top_k": 8}
SETTINGS = CONFIG | {
    "categories": ["banks", "households"],
    "teachers": OWN,
    "students": {"pooled": POOLED},
}


def save_wide_teacher(folder, seed):
    """Write a model of another width than the common teacher's, with the same tokenizer."""
    from tiny import build_model

    build_model(640, 48, seed=seed, scale=6.0).save_pretrained(folder / "models/wide")
    for path in (folder / "models/tokenizer").iterdir():
        shutil.copyfile(path, folder / "models/wide" / path.name)


@pytest.fixture(scope="module")
def directory(fresh, tmp_path_factory):
    directory = fresh.copy(tmp_path_factory.mktemp("teachers") / "run")
    save_wide_teacher(directory.path, seed=5)
    directory.configure(SETTINGS)
    directory.run(*TARGETS)
    return directory


def read_models(directory, pattern):
    """Return the model of each teacher by category."""
    found = {path.parent.parent.name: json.loads(path.read_text()) for path in directory.path.glob(pattern)}
    return {category: index["names"] for category, index in found.items()}


@pytest.mark.slow
def test_each_category_learns_from_its_own_teacher(directory):
    answers = {
        category: read_lines(directory / f"artifacts/distill_data/raw/teacher_outputs_{category}.jsonl")
        for category in ("banks", "households")
    }
    assert {name: max(one["generated_tokens"] for one in found) for name, found in answers.items()} == {
        "banks": 12,
        "households": 24,
    }
    assert read_models(directory, SIGNAL.format("*")) == {
        "banks": {"model": "models/wide", "adapter": None},
        "households": {"model": "models/teacher", "adapter": "models/adapters/households"},
    }
    card = (directory / "output/pooled/all/README.md").read_text()
    assert "from `models/wide`, `models/teacher`, on" in card
    assert "models/teacher (adapter models/adapters/households, float32, quantization none)" in card
    line = directory.run("--dry-run", *TARGETS)
    assert "Teacher: models/teacher, engine transformers; banks: models/wide, engine transformers" in line


@pytest.mark.slow
def test_another_teacher_reruns_its_own_category_only(directory, tmp_path):
    copy = directory.copy(tmp_path / "copy")
    assert planned(copy.run("--dry-run", *TARGETS)) == []
    save_wide_teacher(copy.path, seed=6)
    assert planned(copy.run("--dry-run", *TARGETS)) == [
        ("compute_signal", "banks"),
        ("generate_answers", "banks"),
        ("predict_answers", "banks"),
        ("split_answers", "banks"),
        ("train_student", "all"),
    ]
