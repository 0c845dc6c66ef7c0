"""config/qa.yaml on tiny local models and this project's Chinese questions, up to the exported models."""

import csv
import json
import re
import shutil
import subprocess
import sys
import urllib.request

import pytest
import yaml
from huggingface_hub import ModelCard
from killing import kill_when, start
from running import ROOT, Directory, environment, read_lines
from serving import RealServer
from tiny import build_model, build_tokenizer

STUDENT = "student_kd"
QUESTIONS = "examples/questions/chinese.json"
FOLDER = f"output/export/{STUDENT}/chinese"
VARIANTS = ("full", "nf4", "int8", "gguf")
NAMES = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def shrink(config):
    """Reduce the experiment to one student and to the sizes of a test; keep everything else."""
    student = config["students"][STUDENT]
    train = {"precision": "fp32", "epochs": 1, "learning_rate": 1.0e-3, "gradient_checkpointing": False}
    config["students"] = {STUDENT: student | {"model": "models/student", "train": student["train"] | train}}
    config["teacher"] |= {"model": "models/teacher", "dtype": "float32"}
    config["teacher"]["generation"]["max_new_tokens"] = config["evaluation"]["max_new_tokens"] = 12
    config["evaluation"] |= {"bootstrap": 50, "questions": config["evaluation"]["questions"][:3]}
    config["export"] |= {"datasets": ["owner/questions"]}
    config["source"]["system"] += "格式：{s}、{category}。"  # Snakemake must not replace these braces
    return config | {"device": "cpu"}


@pytest.fixture(scope="module")
def qa(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("qa") / "run"
    (folder / QUESTIONS).parent.mkdir(parents=True)
    shutil.copyfile(ROOT / QUESTIONS, folder / QUESTIONS)
    records = json.loads((folder / QUESTIONS).read_text(encoding="utf-8"))
    tokenizer = build_tokenizer([one["instruction"] + one["output"] for one in records], size=900)
    for name, seed in (("teacher", 1), ("student", 2)):
        # On a CPU nf4 needs widths that are multiples of 64.
        build_model(960, hidden=64, seed=seed, scale=4.0).save_pretrained(folder / "models" / name)
        tokenizer.save_pretrained(folder / "models" / name)
    directory = Directory(folder, shrink(yaml.safe_load((ROOT / "config/qa.yaml").read_text(encoding="utf-8"))))
    directory.run()
    return directory


def test_the_experiment_is_planned_without_a_download(tmp_path):
    directory = Directory(tmp_path, yaml.safe_load((ROOT / "config/qa.yaml").read_text(encoding="utf-8")))
    (tmp_path / QUESTIONS).parent.mkdir(parents=True)
    shutil.copyfile(ROOT / QUESTIONS, tmp_path / QUESTIONS)
    rules = [rule for rule, _ in directory.planned()]
    students = len(directory.config["students"])
    counts = {
        "download_model": 2,
        "find_near_duplicates": 1,
        "generate_answers": 2,
        "train_student": students,
        "export_model": 3 * students,
    }
    assert {rule: rules.count(rule) for rule in counts} == counts


@pytest.mark.slow
def test_every_question_is_answered(qa):
    questions = json.loads((qa / QUESTIONS).read_text(encoding="utf-8"))
    outputs = read_lines(qa / "artifacts/distill_data/raw/teacher_outputs_chinese.jsonl")
    assert [(one["prompt"], one["original_output"]) for one in outputs] == [
        ("\n".join(filter(None, (one["instruction"], one["input"]))), one["output"]) for one in questions
    ]
    assert {one["system"] for one in outputs} == {qa.config["source"]["system"]}


@pytest.mark.slow
def test_targets_are_mixed_and_labelled(qa):
    folder = qa / "artifacts/distill_data/processed/chinese"
    train = read_lines(folder / "train.jsonl")
    assert {one["target"] for one in train} == {"teacher", "original"}
    targets = (folder / "train.target").read_text(encoding="utf-8").split("\n")[:-1]
    for record, line in zip(train, targets, strict=True):
        if record["target"] == "original":
            assert line == record["original_output"]
    assert {one["target"] for one in read_lines(folder / "test.jsonl")} == {"teacher"}
    alpaca = json.loads((folder / "alpaca_train.json").read_text(encoding="utf-8"))
    assert [one["output"] for one in alpaca] == [record["messages"][2]["content"] for record in train]


@pytest.mark.slow
def test_the_size_of_the_signal_is_known_before_it_is_computed(qa):
    """Original answers count at their own length, those of the test split not at all.

    A test's teacher writes broken characters, of which a signal has more tokens: it reads the answers' text.
    """
    data = qa / "artifacts/distill_data"
    answers = {one["uid"]: one for one in read_lines(data / "raw/teacher_outputs_chinese.jsonl") if one["usable"]}
    per_character = sum(one["generated_tokens"] for one in answers.values())
    per_character /= sum(len(one["raw_output"]) for one in answers.values())
    expected = sum(
        len(record["original_output"]) * per_character
        if record["target"] == "original"
        else answers[record["uid"]]["generated_tokens"]
        for split in ("train", "val")
        for record in read_lines(data / f"processed/chinese/{split}.jsonl")
    )
    line = r"teacher signal topk_64_t1 of chinese: .* bytes per token, about ([\d,]+) tokens"
    tokens = int(re.search(line, qa.run("--dry-run"))[1].replace(",", ""))
    assert tokens == pytest.approx(expected, abs=1)


@pytest.mark.slow
def test_a_category_without_its_file_is_skipped_and_a_broken_one_named(qa, tmp_path):
    copy = qa.copy(tmp_path / "copy")
    path = copy / "examples/questions/other.json"
    questions = json.loads((qa / QUESTIONS).read_text(encoding="utf-8"))[:8]
    del questions[4]["output"]
    path.write_text(json.dumps(questions))
    copy.configure(qa.config | {"categories": ["chinese", "missing", "other"]})
    plan = copy.planned()
    assert ("mix_records", "other") in plan
    assert not {("mix_records", "missing"), ("mix_records", "chinese")} & set(plan)
    output = copy.run("artifacts/distill_data/raw/train_mix_other.jsonl", check=False)
    assert "missing: examples/questions/missing.json not found" in output
    assert "other.json:record 5: output: expected text, found 'nothing'" in output


@pytest.mark.slow
def test_everything_is_scored(qa):
    with open(qa / "output/report/metrics.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    models = ["teacher", STUDENT, f"{STUDENT}_base", *(f"{STUDENT}_{variant}" for variant in VARIANTS[1:])]
    assert list(dict.fromkeys(row["model"] for row in rows)) == models
    assert {row["category"] for row in rows} == {"chinese"}  # one category is not pooled
    metrics = {row["metric"] for row in rows}
    assert metrics >= {"bleu", "chrf", "rougeL", "ppl", "agreement", "length_ratio", "distinct2", "fdistill_coverage"}
    ppl = {row["model"]: float(row["value"]) for row in rows if (row["metric"], row["category"]) == ("ppl", "chinese")}
    for variant in VARIANTS[1:]:
        model = f"{STUDENT}_{variant}"
        assert {row["metric"] for row in rows if row["model"] == model} == metrics
        assert ppl[model] != ppl[STUDENT]  # quantized weights give another value, of nearly the same size
        assert abs(ppl[model] / ppl[STUDENT] - 1) < 0.1


@pytest.mark.slow
def test_questions_stand_side_by_side(qa):
    page = (qa / "output/report/answers/chinese.html").read_text(encoding="utf-8")
    for model in ("teacher", STUDENT, f"{STUDENT}_base"):
        answers = read_lines(qa / f"output/evaluation/{model}/chinese.questions.jsonl")
        assert [one["prompt"] for one in answers] == qa.config["evaluation"]["questions"]
        assert all(one["prompt"] in page for one in answers)


@pytest.mark.slow
def test_every_variant_is_an_ordinary_folder(qa):
    student = qa / f"output/{STUDENT}/chinese"
    for variant in VARIANTS:
        folder = qa / f"{FOLDER}/{variant}"
        weights = "model.gguf" if variant == "gguf" else "model.safetensors"
        assert {path.name for path in folder.iterdir()} == NAMES | {weights, "README.md"}
        for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
            assert (folder / name).read_bytes() == (student / name).read_bytes()
    stored = json.loads((qa / f"{FOLDER}/nf4/config.json").read_text())["quantization_config"]
    assert (stored["bnb_4bit_quant_type"], stored["bnb_4bit_use_double_quant"]) == ("nf4", True)
    assert stored["bnb_4bit_compute_dtype"] == "float32"  # as the student's precision
    weights = [path / "model.safetensors" for path in (qa / f"{FOLDER}/full", student)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not weights[0].samefile(weights[1])  # a hard link would share the student's time stamp
    for variant in ("int8", "gguf"):
        log = qa / f"logs/export_model/{STUDENT}/chinese.{variant}.log"
        assert "loaded in a fresh process" in log.read_text()


@pytest.mark.slow
def test_cards_hold_what_the_hub_reads(qa):
    card = ModelCard.load(qa / f"{FOLDER}/nf4/README.md")
    data = card.data.to_dict()
    assert (data["license"], data["datasets"], data["language"]) == ("apache-2.0", ["owner/questions"], ["zh"])
    assert "nf4" in data["tags"]
    assert data["library_name"] == "transformers"
    assert "base_model" not in data  # a local folder is not a model of the hub
    metrics = json.loads((qa / f"output/evaluation/{STUDENT}_nf4/chinese.metrics.json").read_text())
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {name: metrics[name] for name in found}
    assert {"ppl", "bleu", "rougeL"} <= found.keys()
    rows = [line.split("`")[1] for line in card.text.splitlines() if line.startswith("| `") and "[" in line]
    assert rows[-4:] == ["teacher", STUDENT, f"{STUDENT}_base", f"{STUDENT}_nf4"]
    assert "`models/student` distilled by `forward_kl`" in card.text
    assert "| `learning_rate` | `0.001` |" in card.text


@pytest.mark.slow
def test_another_licence_reruns_the_model_cards_only(qa, tmp_path):
    copy = qa.copy(tmp_path / "copy")
    copy.configure(qa.config | {"export": qa.config["export"] | {"license": "mit"}})
    assert copy.planned() == [("write_model_card", "chinese")] * 4


@pytest.mark.slow
def test_an_export_resumes_after_a_kill(qa, tmp_path):
    copy = qa.copy(tmp_path / "copy")
    folder = copy / f"{FOLDER}/int8"
    weights = (folder / "model.safetensors").read_bytes()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    target = f"{FOLDER}/int8/model.safetensors"
    kill_when(start(copy, target), lambda: any(copy.path.glob(f"{FOLDER}/.int8.*.tmp/model.safetensors")))
    assert not (copy / target).exists()
    assert list(copy.path.glob(f"{FOLDER}/.int8.*.tmp"))
    copy.run("--unlock")
    copy.run(target)
    assert (copy / target).read_bytes() == weights
    assert not list(copy.path.glob(f"{FOLDER}/.*"))


class Served(RealServer):
    """`serve_model.py` with an exported model."""

    def start(self):
        command = [sys.executable, ROOT / "workflow/scripts/serve_model.py", "--model", self.model]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                list(map(str, [*command, "--port", self.port])), env=environment(), stdout=log, stderr=log
            )


@pytest.mark.slow
def test_an_exported_model_is_served(qa, tmp_path):
    server = Served(qa / f"{FOLDER}/int8", tmp_path)
    server.start()
    try:
        server.wait()
        prompt = read_lines(qa / "artifacts/distill_data/processed/chinese/test.jsonl")[0]["messages"][:2]
        body = {"model": server.model, "messages": prompt, "max_tokens": 8}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.url}/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
    finally:
        server.kill()
    assert answer["usage"]["completion_tokens"] > 0
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert f"vllm serve {server.model}" in server.log.read_text()


@pytest.mark.slow
def test_serving_a_gguf_file_prints_the_commands_of_other_servers(qa):
    command = ["make", "serve", f"MODEL={qa / FOLDER}/gguf"]
    done = subprocess.run(
        [sys.executable, ROOT / "workflow/scripts/serve_model.py", "--model", qa / f"{FOLDER}/gguf"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "ollama create student_kd-chinese" in done.stdout
    assert f"llama-server --model {qa / FOLDER}/gguf/model.gguf --jinja" in done.stdout
    dry = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f'serve_model.py --model "{qa / FOLDER}/gguf" --port 8000' in dry.stdout
