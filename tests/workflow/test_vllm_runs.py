"""The workflow with engine vllm and a stand-in for vLLM: to the report, with a server a job and with shared ones."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from running import TEACHER, merge
from tiny import build_model
from transformers import AutoTokenizer
from vllm_runs import find_processes
from vllm_stand_in import write_executable

SHORT = {"generation": {"max_new_tokens": 24, "temperature": 0.0}}
LEARNING = {"model": "models/student", "method": "forward_kl", "temperature": 1.0}
RAW, SIGNALS = "artifacts/distill_data/raw", "artifacts/distill_data/teacher_signal"


def remake_teacher(directory):
    """Replace teacher and adapters by ones without padding in the vocabulary, which a random model finds likely."""
    rows = len(AutoTokenizer.from_pretrained(directory / "models/teacher"))
    build_model(rows, 32, scale=6.0).save_pretrained(directory / "models/teacher")
    for seed, category in enumerate(("banks", "households"), start=1):
        torch.manual_seed(seed)
        lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(build_model(rows, 32, scale=6.0), lora).save_pretrained(directory / "models/adapters" / category)


@pytest.fixture(scope="module")
def prepared_vllm(fresh, tmp_path_factory):
    """Records, models, and a configuration with a student of each cached signal."""
    directory = fresh.copy(tmp_path_factory.mktemp("vllm") / "run")
    remake_teacher(directory)
    executable = str(write_executable(directory / "bin"))
    train = directory.config["students"]["student_kd"]["train"] | {"epochs": 1, "logging_steps": 1}
    students = {
        "student_hidden": LEARNING | {"signal": "hidden", "train": train},
        "student_topk": LEARNING | {"signal": "topk", "top_k": 8, "train": train},
    }
    teacher = merge(TEACHER | SHORT, {"engine": "vllm", "vllm": {"executable": executable}})
    teacher["adapter"] = "models/adapters/{category}"
    evaluation = {"metrics": ["rouge", "ppl", "fdistill"], "max_new_tokens": 24, "questions": ["What is a bank?"]}
    evaluation["system"] = "You are brief."
    directory.configure(
        directory.config | {"teacher": teacher, "students": students, "evaluation": evaluation, "answer": None}
    )
    return directory


@pytest.fixture(scope="module")
def alone(prepared_vllm, tmp_path_factory):
    """A finished run in which each job has a server of its own."""
    directory = prepared_vllm.copy(tmp_path_factory.mktemp("alone") / "run")
    directory.run()
    return directory


def read_stable(directory):
    """The results of the teacher: answers, index of signals, predictions, judgements."""
    files = [
        *(directory / RAW).glob("teacher_outputs_*.jsonl"),
        *(directory / "output/evaluation").rglob("teacher/*.predictions.jsonl"),
        *(directory / "output/evaluation").rglob("*.questions.jsonl"),
    ]
    found = {str(path.relative_to(directory.path)): path.read_text() for path in files}
    indexes = {path: json.loads(path.read_text()) for path in (directory / SIGNALS).rglob("index.json")}
    return found | {str(path.relative_to(directory.path)): sorted(one["records"]) for path, one in indexes.items()}


@pytest.mark.slow
def test_the_whole_run_ends_with_a_report_and_no_process(alone):
    assert alone.planned() == []
    table = (alone / "output/report/metrics.csv").read_text()
    for model in ("teacher", "student_hidden", "student_topk"):
        for metric in ("ppl", "fdistill_coverage"):
            assert f"\n{model},banks,{metric}," in table
    logs = sorted(path.name for path in (alone / "logs/vllm").iterdir())
    assert len(logs) == 2 * 6  # answers, two signals, predictions, questions, judgements; of two categories
    assert find_processes(alone.path) == []


@pytest.mark.slow
def test_answers_and_the_first_loss_are_those_of_transformers(alone, prepared_vllm, tmp_path):
    other = prepared_vllm.copy(tmp_path / "run")
    other.configure(merge(other.config, {"teacher": {"engine": "transformers"}}))
    target = "output/student_hidden/banks/training_log.jsonl"
    other.run(target)
    name = f"{RAW}/teacher_outputs_banks.jsonl"
    assert (other / name).read_text() == (alone / name).read_text()
    first, second = (json.loads((one / target).read_text().split("\n")[0])["kd"] for one in (alone, other))
    assert first == pytest.approx(second, rel=1e-3)  # hidden states are stored with the 8 bits of bfloat16


@pytest.mark.slow
def test_categories_that_share_a_server_give_the_same_results(alone, prepared_vllm, tmp_path):
    shared = prepared_vllm.copy(tmp_path / "run")
    shared.configure(merge(shared.config, {"teacher": {"vllm": {"share": True}}}))
    shared.run("--cores", 8)  # a server and all jobs that use it run at the same time
    assert read_stable(shared) == read_stable(alone)
    logs = {
        path.stem: path.read_text().count("Application startup complete") for path in (shared / "logs/vllm").iterdir()
    }
    assert logs == {"answers": 1, "signals": 1, "predictions": 1, "judgements": 1}
    assert not (shared / "artifacts/vllm").exists() or not list((shared / "artifacts/vllm").iterdir())
    assert shared.planned() == []
    assert find_processes(shared.path) == []


@pytest.mark.slow
def test_a_vllm_that_does_not_start_fails_its_jobs_alone(prepared_vllm, tmp_path):
    directory = prepared_vllm.copy(tmp_path / "run")
    directory.configure(merge(directory.config, {"teacher": {"vllm": {"arguments": {"no_such_option": 1}}}}))
    output = directory.run(f"{RAW}/teacher_outputs_banks.jsonl", check=False)
    assert "unrecognized arguments: --no-such-option 1" in output
    assert find_processes(directory.path) == []
