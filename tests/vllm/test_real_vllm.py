"""The workflow with real vLLM and SmolLM2-135M-Instruct in float32 on the CPU, against the engine transformers.

A run with vLLM goes from raw records to the report, with a LoRA adapter for each category. A second one, with
transformers, stops at the first training. The adapters are random: they change the answers.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model
from running import SCRIPTS, Directory, environment, merge, read_lines
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.teacher.signal_files import SignalReader

CATEGORIES = ("plants", "animals")
TRAIN = {
    "epochs": 1, "batch_size": 4, "gradient_accumulation_steps": 1, "precision": "fp32", "learning_rate": 1.0e-4,
    "logging_steps": 1, "gradient_checkpointing": False,
}  # fmt: skip
STUDENT = {"model": "models/student", "method": "forward_kl", "alpha": 0.5, "temperature": 1.0, "train": TRAIN}
CONFIG = {
    "categories": [*CATEGORIES],
    "device": "cpu",
    "source": {"format": "alpaca", "path": "data/{category}.json", "system": "Answer in one sentence."},
    "answer": None,
    "teacher": {
        "adapter": "models/adapters/{category}",
        "dtype": "float32",
        "generation": {"max_new_tokens": 12, "temperature": 0.0, "batch_size": 4},
    },
    "split": {"val_fraction": 0.2, "test_fraction": 0.3},
    "students": {
        "student_hidden": STUDENT | {"signal": "hidden"},
        "student_topk": STUDENT | {"signal": "topk", "top_k": 16},
    },
    "evaluation": {"metrics": ["ppl", "fdistill"], "max_new_tokens": 12, "batch_size": 4, "bootstrap": 50},
}  # fmt: skip
# One request at a time: vLLM 0.32 on a CPU ends with an error when it reads likelihoods with adapters in a batch.
VLLM = {"max_model_len": 512, "max_num_seqs": 1, "enforce_eager": True}
UNIT = 2**-10  # of float16, relative to the number
SIGNALS = ("hidden", "topk_16_t1")
ANSWERS = "artifacts/distill_data/raw/teacher_outputs_{category}.jsonl"
SIGNAL = "artifacts/distill_data/teacher_signal/{category}/{name}"
LOG = "output/student_hidden/plants/training_log.jsonl"
SUBJECTS = {
    "plants": ("a rose", "an oak", "moss", "wheat", "a cactus", "bamboo", "a fern", "clover", "ivy", "a tulip"),
    "animals": ("a cat", "a horse", "an owl", "a whale", "an ant", "a frog", "a crow", "a bee", "a goat", "a trout"),
}


def make_student(teacher, path):
    """Write the teacher's first two layers as a student."""
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:2]
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(path)


def make_adapter(teacher, path, seed):
    """Write a random LoRA adapter that changes the model's answers."""
    torch.manual_seed(seed)
    modules = ["q_proj", "v_proj", "down_proj"]
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=modules, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32), lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory, smollm2):
    """Records, models and adapters."""
    path = tmp_path_factory.mktemp("base") / "run"
    (path / "data").mkdir(parents=True)
    for seed, category in enumerate(CATEGORIES, start=1):
        questions = [
            {"instruction": f"What is {subject}?", "input": "", "output": ""} for subject in SUBJECTS[category]
        ]
        (path / f"data/{category}.json").write_text(json.dumps(questions))
        make_adapter(smollm2, path / "models/adapters" / category, seed)
    make_student(smollm2, path / "models/student")
    return Directory(path, merge(CONFIG, {"teacher": {"model": str(smollm2)}}))


@pytest.fixture(scope="module")
def served(base, executable, tmp_path_factory):
    """The finished run with vLLM: one server for all categories."""
    directory = base.copy(tmp_path_factory.mktemp("vllm") / "run")
    vllm = {"engine": "vllm", "vllm": {"executable": executable, "arguments": VLLM, "share": True}}
    directory.configure(merge(directory.config, {"teacher": vllm}))
    # Jobs and server run at the same time, so that Snakemake wants a core for each; it waits for the server's file.
    directory.run("--cores", 5, timeout=1700)
    return directory


@pytest.fixture(scope="module")
def local(base, tmp_path_factory):
    """The run with transformers, up to one category's signals and one training."""
    directory = base.copy(tmp_path_factory.mktemp("transformers") / "run")
    answers = [ANSWERS.format(category=category) for category in CATEGORIES]
    signals = [f"{SIGNAL.format(category='plants', name=name)}/index.json" for name in SIGNALS]
    directory.run(*answers, *signals, LOG)
    return directory


def find_processes(folder):
    """Return the command lines of processes that work in a folder or name it, but for this one's."""
    found = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
            if process.pid != os.getpid() and (str(folder) in command or Path(process.cwd()).is_relative_to(folder)):
                found.append(f"{process.pid} {process.name()}: {command}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def read_scores(directory):
    """Return the values of the score table by model, category and metric."""
    with open(directory / "output/report/metrics.csv", newline="") as file:
        return {(row["model"], row["category"], row["metric"]): row["value"] for row in csv.DictReader(file)}


def read_signals(directory, name):
    """Return a category's stored signal by record, and its reader."""
    reader = SignalReader(directory / SIGNAL.format(category="plants", name=name))
    return {key: reader.read(key) for key in reader.records}, reader


def test_the_run_ends_with_a_report_and_likelihoods_of_the_teacher(served):
    scores = read_scores(served)
    for model in ("teacher", "student_hidden", "student_topk", "student_hidden_base"):
        for metric in ("ppl", "fdistill_likelihood", "fdistill_coverage"):
            assert float(scores[model, "all", metric]) >= 1, (model, metric)
    assert sorted(path.stem for path in (served / "logs/vllm").iterdir()) == [
        "answers", "judgements", "predictions", "signals",
    ]  # fmt: skip


def test_greedy_answers_with_adapters_are_those_of_transformers(served, local):
    kept = ("uid", "raw_output", "finish_reason", "generated_tokens")
    texts = {}
    for category in CATEGORIES:
        both = [
            [tuple(record[name] for name in kept) for record in read_lines(one / ANSWERS.format(category=category))]
            for one in (served, local)
        ]
        assert both[0] == both[1]
        assert len(both[0]) == len(SUBJECTS[category])
        texts[category] = {text for _, text, *_ in both[0]}
    assert len(set.union(*texts.values())) > 10  # the adapters leave the model able to answer differently


def test_hidden_states_are_those_of_transformers(served, local):
    """Up to the rounding of hidden states to bfloat16, which moves a log-probability by a hundredth."""
    (found, reader), (expected, _) = (read_signals(directory, "hidden") for directory in (served, local))
    assert found.keys() == expected.keys()
    head = reader.head(torch.device("cpu"), torch.float32)
    both = [torch.cat([one[key]["hidden"] for key in expected]).float() for one in (found, expected)]
    ours, theirs = (head(states).log_softmax(-1) for states in both)
    difference = (ours - theirs).abs()
    print(f"hidden: log-probabilities differ by {difference.max():.3g} at most, by {difference.mean():.3g} on average")
    assert difference.mean() < 1e-3
    assert difference.max() < 0.03


def test_likely_tokens_are_those_of_transformers(served, local):
    """Up to one unit of float16, in which log-probabilities are stored."""
    found, expected = (read_signals(directory, "topk_16_t1")[0] for directory in (served, local))
    assert found.keys() == expected.keys()
    for key, theirs in expected.items():
        ours = found[key]
        assert (ours["ids"].sort(-1).values == theirs["ids"].sort(-1).values).float().mean() > 0.98
        same = ours["ids"] == theirs["ids"]
        ours_at, theirs_at = (one["logprobs"].float()[same] for one in (ours, theirs))
        assert ((ours_at - theirs_at).abs() <= theirs_at.abs() * UNIT + 1e-3).all()
        assert (ours_at - theirs_at).abs().mean() < 1e-3
        # A small tail is 1 less the other probabilities, each with an error of its own.
        tails, tail = (one["log_tail"].float() for one in (ours, theirs))
        assert ((tails.exp() - tail.exp()).abs() <= tail.exp() * tail.abs() * UNIT + 1e-5).all()


@pytest.mark.parametrize("name", SIGNALS)
def test_check_signal_with_transformers_accepts_the_signal_of_vllm(served, name):
    output = check_signal(served, name, "transformers")
    assert "largest divergence" in output


def test_a_server_of_the_jobs_own_gives_the_signal_of_the_shared_one(served, executable):
    arguments = [f"{name}={json.dumps(value)}" for name, value in VLLM.items()]
    output = check_signal(served, "hidden", "vllm", "--vllm-executable", executable, "--vllm-arguments", *arguments)
    assert "largest divergence" in output


def check_signal(directory, name, engine, *arguments):
    """Run check_signal.py on a category's signal, and return its output."""
    teacher = directory.config["teacher"]
    options = {
        "signal": SIGNAL.format(category="plants", name=name), "data": "artifacts/distill_data/processed/plants",
        "model": teacher["model"], "adapter": "models/adapters/plants", "dtype": "float32", "device": "cpu",
        "engine": engine, "records": 2, "tolerance": 0.001,
    }  # fmt: skip
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, str(SCRIPTS / "check_signal.py"), *words, *arguments]
    done = subprocess.run(command, cwd=directory.path, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_first_loss_is_that_of_transformers(served, local):
    found, expected = (read_lines(directory / LOG)[0] for directory in (served, local))
    print(f"first divergence: {found['kd']!r} and {expected['kd']!r}")
    assert found["step"] == expected["step"] == 1
    assert found["kd"] == pytest.approx(expected["kd"], rel=1e-4)  # of hidden states in bfloat16


def test_nothing_is_left_running(served, local):
    assert find_processes(served.path) == []
