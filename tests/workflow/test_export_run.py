"""A run that exports its student: every variant loads, is scored, has a card, is served, and survives a kill."""

import csv
import json
import subprocess
import sys
import urllib.request

import pytest
import yaml
from huggingface_hub import ModelCard
from running import CONFIG, ROOT, environment, read_lines
from serving import RealServer
from test_kills import kill_when, start
from tiny import build_model
from transformers import AutoTokenizer

FOLDER = "output/export/kd/banks"
NAMES = {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "README.md"}
EXPORT = {"license": "apache-2.0", "datasets": ["owner/questions"], "language": ["en", "zh"]}


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """One category, and a student whose layers nf4 takes on a CPU."""
    directory = finished.copy(tmp_path_factory.mktemp("exported") / "run")
    build_model(624, 64, scale=6.0).save_pretrained(directory / "models/wide")
    AutoTokenizer.from_pretrained(directory / "models/student").save_pretrained(directory / "models/wide")
    student = CONFIG["students"]["student_seqkd"] | {"model": "models/wide"}
    config = CONFIG | {"categories": ["banks"], "students": {"kd": student}, "export": EXPORT}
    directory.configure(config)
    directory.output = directory.run()
    return directory


def test_every_variant_is_an_ordinary_folder(exported):
    student = exported / "output/kd/banks"
    for variant in ("full", "nf4", "int8", "gguf"):
        folder = exported / f"{FOLDER}/{variant}"
        weights = "model.gguf" if variant == "gguf" else "model.safetensors"
        assert {path.name for path in folder.iterdir()} == NAMES | {weights, "tokenizer_config.json"}
        for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
            assert (folder / name).read_bytes() == (student / name).read_bytes()
        rule = "export_gguf" if variant == "gguf" else "export_model"
        log = f"logs/{rule}/kd/banks.log" if variant == "gguf" else f"logs/{rule}/kd/banks.{variant}.log"
        assert "loaded in a fresh process" in (exported / log).read_text()
    stored = json.loads((exported / f"{FOLDER}/nf4/config.json").read_text())["quantization_config"]
    assert (stored["bnb_4bit_quant_type"], stored["bnb_4bit_use_double_quant"]) == ("nf4", True)
    assert stored["bnb_4bit_compute_dtype"] == "float32"  # as the student's precision
    assert (exported / f"{FOLDER}/full/model.safetensors").samefile(student / "model.safetensors")


def test_variants_are_scored_beside_their_student(exported):
    with open(exported / "output/report/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    models = ["teacher", "kd", "kd_base", "kd_nf4", "kd_int8", "kd_gguf"]
    assert list(dict.fromkeys(row["model"] for row in rows)) == models
    ppl = {row["model"]: float(row["value"]) for row in rows if (row["metric"], row["category"]) == ("ppl", "banks")}
    for variant in ("nf4", "int8", "gguf"):
        assert ppl[f"kd_{variant}"] != ppl["kd"]  # other numbers,
        assert abs(ppl[f"kd_{variant}"] / ppl["kd"] - 1) < 0.1  # of the same model


def test_cards_hold_what_the_hub_reads(exported):
    card = ModelCard.load(exported / f"{FOLDER}/nf4/README.md")
    data = card.data.to_dict()
    assert (data["license"], data["datasets"], data["language"]) == ("apache-2.0", ["owner/questions"], ["en", "zh"])
    assert "nf4" in data["tags"]
    assert data["library_name"] == "transformers"
    assert "base_model" not in data  # a folder here is no model of the hub
    metrics = json.loads((exported / "output/evaluation/kd_nf4/banks.metrics.json").read_text())
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {name: metrics[name] for name in found}
    assert {"ppl", "bleu", "rougeL"} <= found.keys()
    rows = [line.split("`")[1] for line in card.text.splitlines() if line.startswith("| `") and "[" in line]
    assert rows[-4:] == ["teacher", "kd", "kd_base", "kd_nf4"]
    assert "`models/wide` distilled by `seqkd`" in card.text
    assert "| `learning_rate` | `0.001` |" in card.text


def test_nothing_runs_again_and_a_licence_writes_cards_alone(exported, tmp_path):
    assert exported.planned() == []
    copy = exported.copy(tmp_path / "copy")
    copy.configure(yaml.safe_load(copy.configfile.read_text()) | {"export": EXPORT | {"license": "mit"}})
    assert copy.planned() == [("write_model_card", "banks")] * 4


def test_an_export_goes_on_after_a_kill(exported, tmp_path):
    copy = exported.copy(tmp_path / "copy")
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
    """`serve_model.py` on a folder."""

    def start(self):
        command = [sys.executable, ROOT / "workflow/scripts/serve_model.py", "--model", self.model]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                list(map(str, [*command, "--port", self.port])), env=environment(), stdout=log, stderr=log
            )


def test_an_exported_model_is_served(exported, tmp_path):
    server = Served(exported / f"{FOLDER}/int8", tmp_path)
    server.start()
    try:
        server.wait()
        prompt = read_lines(exported / "artifacts/distill_data/processed/banks/test.jsonl")[0]["messages"][:2]
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


def test_of_a_gguf_file_other_servers_are_told(exported):
    command = ["make", "serve", f"MODEL={exported / FOLDER}/gguf"]
    done = subprocess.run(
        [sys.executable, ROOT / "workflow/scripts/serve_model.py", "--model", exported / f"{FOLDER}/gguf"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "ollama create kd-banks" in done.stdout
    assert f"llama-server --model {exported / FOLDER}/gguf/model.gguf --jinja" in done.stdout
    dry = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f'serve_model.py --model "{exported / FOLDER}/gguf" --port 8000' in dry.stdout
