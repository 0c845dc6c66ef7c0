"""The stand-in for vLLM, against transformers and peft, and against what vLLM 0.32 answers."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psutil
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from serving import free_port
from tiny import build_tokenizer
from transformers import AutoModelForCausalLM
from vllm_runs import make_models
from vllm_stand_in import ENGINE, VARIABLE, VERSION, write_executable
from vllm_stand_in_model import Model, Sampling

pytestmark = pytest.mark.slow  # tests of what other tests use

PROMPT = [1, 70, 81, 90, 300, 310, 70, 2, 44]
LENGTH = 96
LAYERS = {"method": "extract_hidden_states", "num_speculative_tokens": 1}


def find_engines(group):
    """Return the engines in a process group; the servers of these tests lead groups of their own."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if ENGINE in (process.info["cmdline"] or []) and os.getpgid(process.pid) == group
    ]


class StandIn:
    """A server in a process group of its own, with its output in a file."""

    def __init__(self, folder, model, *options, **misbehaviour):
        self.port, self.log = free_port(), folder / "server.log"
        command = [write_executable(folder / "bin"), "serve", model, "--host", "127.0.0.1", "--port", str(self.port)]
        environment = os.environ | {VARIABLE: json.dumps(misbehaviour), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*command, *options], env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self.process.kill()
        self.process.wait()
        for engine in find_engines(self.process.pid):
            engine.kill()

    def get(self, path, body=None):
        """Return the status and the body of an answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def complete(self, **body):
        status, answer = self.get("/v1/completions", {"prompt": PROMPT, "temperature": 0, **body})
        assert status == 200, answer
        return answer

    def choose(self, **body):
        return self.complete(**{"return_token_ids": True, **body})["choices"][0]

    def wait(self):
        end = time.monotonic() + 120
        while True:
            try:
                assert self.get("/health") == (200, None)
                return self
            except OSError:
                assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()  # noqa: PT018
                time.sleep(0.05)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model and two adapters."""
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    layers = LAYERS | {"draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": [2]}}}
    transfer = {
        "kv_connector": "ExampleHiddenStatesConnector",
        "kv_role": "kv_producer",
        "kv_connector_extra_config": {"shared_storage_path": str(folder / "states")},
    }
    options = ["--served-model-name", "base", "--dtype", "float32", "--max-model-len", str(LENGTH)]
    options += ["--max-logprobs", "30", "--generation-config", "vllm", "--enable-lora", "--max-lora-rank", "8"]
    options += ["--lora-modules", f"a={files / 'a'}", json.dumps({"name": "b", "path": str(files / "b")})]
    options += ["--speculative-config", json.dumps(layers), "--kv-transfer-config", json.dumps(transfer)]
    with StandIn(folder, files / "model", *options, record=str(folder / "record.jsonl")) as running:
        running.folder = folder
        yield running.wait()


def load(files, name):
    model = AutoModelForCausalLM.from_pretrained(files / "model", dtype=torch.float32)
    return (PeftModel.from_pretrained(model, files / name) if name in ("a", "b") else model).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", ["base", "a", "b"])
def test_log_probabilities_and_hidden_states_are_those_of_the_model(server, files, name):
    model, tokenizer = load(files, name), build_tokenizer()
    expected = model(torch.tensor([PROMPT])).logits[0].log_softmax(-1)

    answer = server.complete(model=name, max_tokens=1, prompt_logprobs=30)

    first, *found = answer["choices"][0]["prompt_logprobs"]
    assert first is None
    for row, token, entries in zip(expected, PROMPT[1:], found, strict=False):
        best = row.topk(30).indices.tolist()
        assert next(iter(entries)) == str(token)
        assert set(map(int, entries)) == {token, *best}
        assert entries[str(token)]["rank"] == 1 + (row > row[token]).sum()
        for index, entry in entries.items():
            assert entry["logprob"] == pytest.approx(row[int(index)].item(), abs=1e-4)
            text = tokenizer.decode([int(index)])
            assert entry["decoded_token"] == text or text.endswith("\ufffd")

    path = answer["kv_transfer_params"]["hidden_states_path"]
    assert os.path.exists(f"{path}.lock")
    stored = load_file(path)
    assert stored["token_ids"].tolist() == PROMPT
    assert stored["hidden_states"].shape == (len(PROMPT), 1, 32)
    base = model.get_base_model() if name != "base" else model
    logits = base.lm_head(base.model.norm(stored["hidden_states"][:, 0]))
    torch.testing.assert_close(logits.log_softmax(-1), expected, atol=1e-4, rtol=0)


def test_greedy_completions_are_those_of_generate_and_adapters_differ(server, files):
    texts = set()
    for name in ("base", "a", "b"):
        found = load(files, name).generate(input_ids=torch.tensor([PROMPT]), do_sample=False, max_new_tokens=12)
        choice = server.choose(model=name, max_tokens=12)
        assert choice["token_ids"] == found[0, len(PROMPT) :].tolist()
        assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)
        texts.add(choice["text"])
    assert len(texts) == 3


def test_the_token_that_stops_a_completion_is_in_its_ids_and_not_in_its_text(server):
    plain = server.choose(max_tokens=12)
    token = plain["token_ids"][5]
    length = plain["token_ids"].index(token) + 1
    for skip in (True, False):
        choice = server.choose(max_tokens=12, stop_token_ids=[token], skip_special_tokens=skip)
        assert choice["token_ids"] == plain["token_ids"][:length]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", token)
        assert len(choice["text"]) < len(plain["text"])


def test_the_tokenizers_eos_token_stops_without_a_reason(server):
    draws = (server.choose(max_tokens=80, temperature=1.5, seed=seed, stop_token_ids=[2]) for seed in range(40))
    choice = next(choice for choice in draws if choice["finish_reason"] == "stop")
    assert choice["stop_reason"] is None
    assert choice["token_ids"][-1] == 2
    assert 2 not in choice["token_ids"][:-1]


def test_a_draw_depends_on_its_seed_alone(server):
    def draw(seed):
        return server.choose(max_tokens=10, temperature=1.0, seed=seed, ignore_eos=True)["token_ids"]

    first = [draw(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, range(4))) == first
    assert len(set(map(tuple, first))) == 4
    assert server.choose(max_tokens=10, temperature=1.0, seed=3, top_k=1) == server.choose(max_tokens=10)


def test_a_chat_is_the_completion_of_its_rendered_template(server):
    messages = [{"role": "user", "content": "me=1.5"}]
    text = build_tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    status, chat = server.get(
        "/v1/chat/completions", {"model": "a", "messages": messages, "temperature": 0, "max_tokens": 6}
    )
    answer = server.complete(model="a", prompt=text, max_tokens=6)
    assert status == 200
    assert chat["choices"][0]["message"]["content"] == answer["choices"][0]["text"]
    assert chat["usage"] == answer["usage"]


def test_models_and_version(server, files):
    models = server.get("/v1/models")[1]["data"]
    assert [(card["id"], card["root"], card["parent"], card["max_model_len"]) for card in models] == [
        ("base", str(files / "model"), None, LENGTH),
        ("a", str(files / "a"), "base", None),
        ("b", str(files / "b"), "base", None),
    ]
    assert server.get("/version") == (200, {"version": VERSION})


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"model": "x"}, 404, "The model `x` does not exist. Valid aliases: base."),
        (
            {"prompt_logprobs": 31},
            400,
            "Requested prompt logprobs of 31, which is greater than max allowed: 30 "
            "(parameter=prompt_logprobs, value=31)",
        ),
        (
            {"prompt": [5] * 100},
            400,
            "This model's maximum context length is 96 tokens. However, your prompt contains 100 input tokens, which "
            "exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
            "(parameter=input_tokens, value=100)",
        ),
        (
            {"prompt": [5] * LENGTH},
            400,
            "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
        ),
        ({"prompt": [5, 352]}, 400, "Token id 352 is out of vocabulary"),
        ({"prompt": ""}, 400, "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"),
        (
            {"max_tokens": "x"},
            400,
            "1 validation error:\n  {'type': 'int_parsing', 'loc': 'body.max_tokens', 'msg': 'Input should be a valid "
            "integer, unable to parse string as an integer', 'input': 'x'}",
        ),
    ],
)
def test_refusals_are_those_of_vllm(server, changes, status, message):
    found, body = server.get("/v1/completions", {"prompt": PROMPT, "max_tokens": 1, **changes})
    assert found == status
    assert body["error"]["message"] == message
    assert body["error"]["code"] == status


def test_a_record_lists_the_start_and_the_requests(server):
    server.complete(max_tokens=1, model="b")
    start, *requests = map(json.loads, (server.folder / "record.jsonl").read_text().splitlines())
    assert start["pid"] == server.process.pid
    assert start["options"]["max_lora_rank"] == 8
    assert requests[-1] == {
        "path": "/v1/completions",
        "model": "b",
        "body": {"prompt": PROMPT, "temperature": 0, "max_tokens": 1, "model": "b"},
    }


def run(files, *options, **misbehaviour):
    """Run a server that cannot start, and return its exit code and output."""
    with StandIn(files, files / "model", *options, **misbehaviour) as failed:
        code = failed.process.wait(timeout=60)
        assert not find_engines(failed.process.pid)
        return SimpleNamespace(code=code, output=failed.log.read_text())


def test_a_failed_start_ends_with_vllms_words(files):
    unknown = run(files, "--bogus", "3")
    assert unknown.code == 2
    assert "vllm: error: unrecognized arguments: --bogus 3" in unknown.output

    memory = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB"
    assert run(files, exit_at_start=memory) == SimpleNamespace(code=1, output=memory + "\n")

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = run(files, "--port", str(taken.getsockname()[1]))
    assert port.code == 1
    assert "OSError: [Errno 98] Address already in use" in port.output

    rank = run(files, "--enable-lora", "--max-lora-rank", "1", "--lora-modules", f"b={files / 'b'}")
    assert rank.code == 1
    assert "LoRA rank 4 is greater than max_lora_rank 1." in rank.output


def test_the_engine_ends_with_sigterm_and_outlives_a_crash(files, tmp_path):
    with StandIn(tmp_path, files / "model", never_ready=True) as server:
        end = time.monotonic() + 60
        while not find_engines(server.process.pid):
            assert time.monotonic() < end
            time.sleep(0.02)
        with pytest.raises(urllib.error.URLError, match="refused"):
            server.get("/health")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=30) == 0
        assert not find_engines(server.process.pid)

    with StandIn(tmp_path, files / "model", crash_after=2) as server:
        server.wait().complete(max_tokens=1)
        with pytest.raises(OSError, match="closed|reset"):
            server.complete(max_tokens=1)
        assert server.process.wait(timeout=30) == -signal.SIGKILL
        assert len(find_engines(server.process.pid)) == 1


def test_deliberate_errors_change_the_numbers(files):
    def score(**changes):
        model = Model(files / "model", layers=[2], changes=changes)
        done = model.complete(PROMPT, Sampling(max_tokens=1, temperature=0.0), prompt_logprobs=30)
        return done.prompt_logprobs[1:], done.hidden

    rows, states = score()
    changed, _ = score(wrong_logprobs=0.5)
    assert sum(torch.tensor([entry["logprob"] for entry in changed[0].values()]).exp()) > 1
    texts = [[entry["decoded_token"] for entry in row.values()] for row in score(shift_tokens=True)[0]]
    assert texts != [[entry["decoded_token"] for entry in row.values()] for row in rows]
    norm = load(files, "base").model.norm
    assert not torch.allclose(norm(score(wrong_hidden=1.5)[1]), norm(states), atol=0.01)


@torch.no_grad()
def test_hidden_states_of_several_layers_come_in_the_order_of_the_layers(files):
    done = Model(files / "model", layers=[1, 0]).complete(PROMPT, Sampling(max_tokens=4, temperature=0.0))
    model, tokens = load(files, "base"), torch.tensor([[*PROMPT, *done.token_ids[:-1]]])
    expected = model(tokens, output_hidden_states=True).hidden_states[:2]
    torch.testing.assert_close(done.hidden, torch.cat(expected).transpose(0, 1), atol=1e-5, rtol=1e-5)
