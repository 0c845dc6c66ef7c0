"""config/qa.yaml on tiny local models and this project's Chinese questions, all the way to what is handed over."""

import csv
import json
import shutil

import pytest
import yaml
from running import ONE_THREAD, ROOT, read_lines, snakemake
from tiny import build_model, build_tokenizer

STUDENT = "student_kd"
VARIANTS = ("nf4", "int8", "gguf")


def shrink(config):
    """The experiment with one of its students, in sizes of a test; everything else as it stands."""
    student = config["students"][STUDENT]
    train = {"precision": "fp32", "epochs": 1, "learning_rate": 1.0e-3, "gradient_checkpointing": False}
    config["students"] = {STUDENT: student | {"model": "models/student", "train": student["train"] | train}}
    config["teacher"] |= {"model": "models/teacher", "dtype": "float32"}
    config["teacher"]["generation"]["max_new_tokens"] = config["evaluation"]["max_new_tokens"] = 12
    config["evaluation"] |= {"bootstrap": 50, "questions": config["evaluation"]["questions"][:3]}
    return config | {"device": "cpu"}


@pytest.fixture(scope="module")
def qa(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("qa")
    questions = "examples/questions/chinese.json"
    (folder / questions).parent.mkdir(parents=True)
    shutil.copyfile(ROOT / questions, folder / questions)
    records = json.loads((folder / questions).read_text(encoding="utf-8"))
    tokenizer = build_tokenizer([one["instruction"] + one["output"] for one in records], size=900)
    for name, seed in (("teacher", 1), ("student", 2)):
        # nf4 on a CPU needs widths of 64·n
        build_model(960, hidden=64, seed=seed, scale=4.0).save_pretrained(folder / "models" / name)
        tokenizer.save_pretrained(folder / "models" / name)
    config = shrink(yaml.safe_load((ROOT / "config/qa.yaml").read_text(encoding="utf-8")))
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    return folder, run(folder)


def run(folder, *more):
    return snakemake(*ONE_THREAD, "--configfile", folder / "config.yaml", "--directory", folder, *more, timeout=900)


def test_everything_is_scored(qa):
    folder, _ = qa
    with open(folder / "output/report/metrics.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    models = ["teacher", STUDENT, f"{STUDENT}_base", *(f"{STUDENT}_{variant}" for variant in VARIANTS)]
    assert {row["model"] for row in rows} == set(models)
    metrics = {row["metric"] for row in rows}
    assert metrics >= {"bleu", "chrf", "rougeL", "ppl", "agreement", "length_ratio", "distinct2", "fdistill_coverage"}
    assert {row["metric"] for row in rows if row["model"] == f"{STUDENT}_gguf"} == metrics


def test_questions_stand_side_by_side(qa):
    folder, _ = qa
    questions = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["evaluation"]["questions"]
    page = (folder / "output/report/answers/chinese.html").read_text(encoding="utf-8")
    for model in ("teacher", STUDENT, f"{STUDENT}_base"):
        answers = read_lines(folder / f"output/evaluation/{model}/chinese.questions.jsonl")
        assert [one["prompt"] for one in answers] == yaml.safe_load((folder / "config.yaml").read_text())["evaluation"][
            "questions"
        ]
        assert all(one["prompt"] in page for one in answers)


def test_models_are_ready_to_hand_over(qa):
    folder, _ = qa
    exports = folder / f"output/export/{STUDENT}/chinese"
    for variant in ("full", *VARIANTS):
        card = (exports / variant / "README.md").read_text(encoding="utf-8")
        metadata = yaml.safe_load(card.split("---\n")[1])
        assert metadata["license"] == "apache-2.0"
        assert (exports / variant / "generation_config.json").exists()
    assert (exports / "gguf/model.gguf").exists()


def test_a_second_run_has_nothing_to_do(qa):
    folder, _ = qa
    assert "Nothing to be done" in run(folder)
