"""The engine `vllm` with a stand-in for vLLM: answers and likelihoods against transformers, errors, all ends."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conversations import make_conversation
from running import environment
from safetensors.torch import save_file
from tiny import TOOLS, build_tokenizer
from vllm_runs import REQUESTS, find_processes, make_engine, make_models, make_source, misbehave
from vllm_stand_in import ENGINE

from distill.common.errors import InputError
from distill.generation import vllm_server
from distill.generation.engine import count_gpus
from distill.generation.options import VllmOptions, get_result_arguments
from distill.generation.sampling import Sampling, make_request
from distill.generation.token_client import TokenClient, TokenRequest
from distill.generation.transformers_engine import TransformersEngine
from distill.generation.vllm_engine import VllmSource
from distill.generation.vllm_server import build_command, choose_rank, find_executable, format_arguments
from distill.models.chat import ChatTemplate
from distill.records.conversations import read_teacher_conversation
from distill.records.raw_records import get_fields
from distill.teacher.serving import describe_serving

PROMPTS = [[1, 70, 81, 90], [1, 300, 310, 70, 2, 44]]
COMPLETIONS = [[5, 9, 200, 2], [70, 71, 2]]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


def answer(engine, requests=REQUESTS):
    found = dict(pair for batch in engine.generate(requests) for pair in batch)
    return [found[request] for request in requests]


@pytest.mark.parametrize("adapter", [pytest.param(None, marks=pytest.mark.slow), "a"])
def test_greedy_answers_and_likelihoods_are_those_of_transformers(models, tmp_path, adapter):
    engine = make_engine(models, tmp_path, adapter)
    plain = TransformersEngine(make_source(models, adapter), engine.server.sampling, 4)
    assert answer(engine) == answer(plain)
    found, expected = (one.score_completions(PROMPTS, COMPLETIONS) for one in (engine, plain))
    assert [(one.tokens, one.hits) for one in found] == [(one.tokens, one.hits) for one in expected]
    assert [one.nll for one in found] == pytest.approx([one.nll for one in expected], abs=1e-4)
    engine.server.close()
    assert find_processes(tmp_path) == []


@pytest.mark.slow
def test_samples_depend_on_the_request_alone(models, tmp_path):
    engine = make_engine(models, tmp_path, sampling=Sampling(max_new_tokens=12, temperature=1.0))
    together, alone = answer(engine), answer(engine, REQUESTS[3:4])
    assert together[3:4] == alone
    assert len({one.text for one in together}) > 1
    engine.server.close()


def test_the_server_starts_with_the_first_request_only(models, tmp_path):
    engine = make_engine(models, tmp_path)
    assert engine.find_overlong(REQUESTS) == {}
    assert len(engine.fingerprint()) > 16
    assert not (tmp_path / "vllm.log").exists()


def test_prompts_beyond_the_context_are_found_before_it_starts(models, tmp_path):
    engine = make_engine(models, tmp_path, arguments={"max_model_len": 20})
    (text, *_) = engine.find_overlong(REQUESTS).values()
    assert text.endswith("the limit is 19")


def test_the_fingerprint_covers_what_decides_an_answer(models, tmp_path):
    def fingerprint(adapter=None, **arguments):
        return make_engine(models, tmp_path, adapter, arguments=arguments).fingerprint()

    plain = fingerprint()
    assert plain == fingerprint(gpu_memory_utilization=0.5, max_num_seqs=64)
    others = [fingerprint("a"), fingerprint(max_model_len=64), fingerprint(load_format="dummy")]
    transformers = TransformersEngine(make_source(models), Sampling(max_new_tokens=12, temperature=0.0), 4)
    assert len({plain, *others, transformers.fingerprint()}) == 5


# ---- Ends ----


def test_a_server_that_crashes_ends_the_job_with_its_log(models, tmp_path, monkeypatch):
    misbehave(monkeypatch, crash_after=3)
    engine = make_engine(models, tmp_path)
    with pytest.raises(InputError, match="vLLM has ended with exit code 137; its log .*vllm.log says"):
        answer(engine)
    engine.server.close()
    assert find_processes(tmp_path) == []


def test_out_of_memory_at_the_start_says_what_to_change(models, tmp_path, monkeypatch):
    misbehave(monkeypatch, exit_at_start="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB")
    with pytest.raises(InputError) as error:
        answer(make_engine(models, tmp_path))
    assert "CUDA out of memory" in str(error.value)
    assert "raise gpu_memory_utilization in teacher.vllm.arguments" in str(error.value)
    assert find_processes(tmp_path) == []


def test_a_server_that_is_never_ready_is_given_up(models, tmp_path, monkeypatch):
    misbehave(monkeypatch, never_ready=True)
    with pytest.raises(InputError, match=r"vLLM was not ready after 3 s \(teacher.vllm.start_timeout\)"):
        answer(make_engine(models, tmp_path, start_timeout=3))
    assert find_processes(tmp_path) == []


@pytest.mark.slow
def test_another_port_is_tried_if_one_is_taken(models, tmp_path, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ports = iter([other.getsockname()[1]])
        free = vllm_server.find_port
        monkeypatch.setattr(vllm_server, "find_port", lambda: next(ports, None) or free())
        engine = make_engine(models, tmp_path)
        assert len(answer(engine)) == len(REQUESTS)
    assert "address already in use" in (tmp_path / "vllm.log").read_text().lower()
    engine.server.close()


@pytest.mark.slow
def test_an_unknown_option_of_vllm_is_said_in_its_own_words(models, tmp_path):
    with pytest.raises(InputError, match="unrecognized arguments: --no-such-option 1"):
        answer(make_engine(models, tmp_path, arguments={"no_such_option": 1}))


@pytest.mark.slow
def test_two_jobs_at_once_have_servers_of_their_own(models, tmp_path):
    engines = [make_engine(models, tmp_path / name, name) for name in ("a", "b")]
    first, second = (answer(engine) for engine in engines)
    assert first != second
    assert engines[0].server.server.base_url != engines[1].server.server.base_url
    for engine in engines:
        engine.server.close()
    assert find_processes(tmp_path) == []


JOB = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from vllm_runs import REQUESTS, make_engine
from distill.common.errors import run_script

def main():
    engine = make_engine(Path({models!r}), Path({folder!r}))
    for batch in engine.generate(REQUESTS * {times}):
        print("answered", flush=True)
    if {fails}:
        raise ValueError("a bug")

run_script(main)
"""


@pytest.mark.parametrize(
    ("end", "code", "how"),
    [
        pytest.param("normal", 0, {}, marks=pytest.mark.slow),
        pytest.param("error", 1, {}, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 1, {}, marks=pytest.mark.slow),  # a traceback, as of any script
        pytest.param(signal.SIGTERM, -signal.SIGTERM, {}, marks=pytest.mark.slow),
        (signal.SIGKILL, -signal.SIGKILL, {}),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, {"ignore_sigterm": True}, marks=pytest.mark.slow),
    ],
    ids=["normal", "error", "ctrl-c", "terminated", "killed", "killed with a stubborn server"],
)
def test_no_process_outlives_the_job(models, tmp_path, monkeypatch, end, code, how):
    misbehave(monkeypatch, **how)
    paths = [path for path in sys.path if "tests/helpers" in path or "workflow/scripts" in path]
    is_cut = isinstance(end, signal.Signals)
    text = JOB.format(
        paths=paths, models=str(models), folder=str(tmp_path), times=10000 if is_cut else 1, fails=end == "error"
    )
    job = subprocess.Popen(
        [sys.executable, "-c", text], env=environment() | {"PYTHONPATH": os.pathsep.join(paths)}, stdout=subprocess.PIPE
    )
    try:
        assert job.stdout.readline() == b"answered\n"
        if is_cut:  # any other job may have ended by now
            assert any(ENGINE in line for _, line in find_processes(ENGINE))
            job.send_signal(end)
        job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode == code
    deadline = time.monotonic() + 60  # a supervisor waits before it kills
    while find_processes(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert find_processes(tmp_path) == []


def test_the_cause_of_an_end_is_shown_and_not_what_repeats_it(tmp_path):
    log = tmp_path / "vllm.log"
    log.write_text(
        "INFO starting\n"
        "(EngineCore pid=2) ERROR 11-27 [core.py] ValueError: LoRA rank 12 is greater than max_lora_rank 8.\n"
        "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    server = vllm_server.VllmServer(["serve"], VllmOptions(executable=sys.executable), log, "cpu")
    text = server.explain()
    assert "LoRA rank 12 is greater than max_lora_rank 8." in text
    assert "Engine core initialization" not in text


# ---- Refusals ----


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"wrong_logprobs": 0.1}, "expected probabilities that sum to at most 1, found"),
        pytest.param({"shift_tokens": True}, "as in the tokenizer, found", marks=pytest.mark.slow),
    ],
)
def test_log_probabilities_that_cannot_be_the_models_are_refused(models, tmp_path, monkeypatch, how, words):
    misbehave(monkeypatch, **how)
    engine = make_engine(models, tmp_path)
    engine.server.server.command += ["--max-logprobs", "20"]
    requests = [TokenRequest(0, "uid", [*PROMPTS[0], *range(290, 310)], 4, top=20)]
    with pytest.raises(InputError, match=words):
        engine.read_tokens(requests)
    engine.server.close()


def test_adapters_that_vllm_does_not_serve_are_refused(models, tmp_path):
    def save(**changes):
        config = json.loads((models / "a/adapter_config.json").read_text()) | changes
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "adapter_model.safetensors").write_bytes((models / "a/adapter_model.safetensors").read_bytes())
        return str(folder)

    assert choose_rank([str(models / "a"), str(models / "b")]) == 8
    assert choose_rank([save(r=9)]) == 16
    assert choose_rank([save(r=2, rank_pattern={"q_proj": 40})]) == 64
    for changes, words in (
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: expected none with engine vllm"),
        ({"use_dora": True}, "use_dora: expected none with engine vllm"),
        ({"r": 600}, "expected a LoRA of rank 512 or less with engine vllm, found rank 600"),
        ({"r": "many"}, "expected the configuration of a LoRA with its rank r"),
    ):
        with pytest.raises(InputError, match=words):
            choose_rank([save(**changes)])
    save_file(
        {"base_model.model.lm_head.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "adapter/adapter_model.safetensors"
    )
    (tmp_path / "adapter/adapter_config.json").write_text((models / "a/adapter_config.json").read_text())
    with pytest.raises(InputError, match="expected no adapter of head or embeddings .*lm_head.lora_A"):
        choose_rank([str(tmp_path / "adapter")])


def test_bitsandbytes_weights_are_refused(models, tmp_path):
    source = replace(make_source(models), quantization="int8")
    with pytest.raises(InputError, match="--quantization: expected none with engine vllm, found int8"):
        VllmSource(source, Sampling(), VllmOptions(), tmp_path / "log", 1, 1.0)


def test_the_program_is_the_named_one_or_on_the_path_or_in_its_own_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(vllm_server, "OWN_ENVIRONMENT", tmp_path / "own/vllm")
    with pytest.raises(InputError, match="run `make setup-vllm`"):
        find_executable(None)
    with pytest.raises(InputError, match="teacher.vllm.executable: expected a program, found none at 'nowhere'"):
        find_executable("nowhere")
    for path in (tmp_path / "own/vllm", tmp_path / "vllm"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        assert find_executable(None) == str(path)
    assert find_executable(str(tmp_path / "own/vllm")) == str(tmp_path / "own/vllm")


def test_the_command_has_the_users_arguments_and_the_jobs_own(models):
    options = VllmOptions(arguments={"max_model_len": 4096, "quantization": "fp8", "enforce_eager": True})
    adapters = {"adapter": str(models / "a")}
    words = build_command("m", "bfloat16", "cuda", adapters, options, 64, layers=28, folder=Path("/states"))
    text = " ".join(words)
    assert text.startswith(
        "serve m --served-model-name base --dtype bfloat16 --max-logprobs 64 --generation-config vllm"
    )
    assert "--max-model-len 4096 --quantization fp8 --enforce-eager" in text
    assert text.endswith(f"--lora-modules adapter={models / 'a'}")
    spec = json.loads(words[words.index("--speculative-config") + 1])
    assert spec["draft_model_config"] == {"hf_config": {"eagle_aux_hidden_state_layer_ids": [28]}}
    transfer = json.loads(words[words.index("--kv-transfer-config") + 1])
    assert transfer["kv_connector_extra_config"] == {"shared_storage_path": "/states"}
    assert "kv_connector_module_path" not in transfer
    plain = build_command("m", "bfloat16", "cpu", {}, VllmOptions())
    assert not {"--enable-lora", "--speculative-config", "--kv-transfer-config"} & set(plain)
    assert format_arguments({"hf_overrides": '{"a": 1}'}) == ["--hf-overrides", '{"a": 1}']


def test_only_arguments_that_decide_results_are_tracked():
    arguments = {"max_model_len": 8, "kv_cache_dtype": "fp8", "tensor_parallel_size": 2}
    assert get_result_arguments(arguments) == {"kv_cache_dtype": "fp8", "max_model_len": 8}
    assert describe_serving("vllm", {"max_model_len": 8}) == {}
    assert count_gpus(arguments, nodes=1) == 2
    assert count_gpus(arguments, nodes=2) == 1


@pytest.mark.slow
def test_progress_is_shown_while_it_starts(models, tmp_path, monkeypatch, caplog):
    misbehave(monkeypatch, ready_after=4)
    monkeypatch.setattr(vllm_server, "SECONDS_BETWEEN_LINES", 1)
    caplog.set_level(logging.INFO)
    engine = make_engine(models, tmp_path)
    answer(engine, REQUESTS[:1])
    assert any(record.message.startswith("vLLM starts for") for record in caplog.records)
    assert any(record.message.startswith("vLLM is ready after") for record in caplog.records)
    engine.server.close()


def test_a_proxy_and_a_key_of_the_environment_are_not_for_the_jobs_own_server(models, tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    engine = make_engine(models, tmp_path)
    assert len(answer(engine, REQUESTS[:2])) == 2
    engine.server.close()
    assert "VLLM_API_KEY" not in vllm_server.build_environment("cpu")


def test_records_beyond_the_context_are_refused_before_the_server_starts(models, tmp_path):
    engine = make_engine(models, tmp_path, arguments={"max_model_len": 10})
    with pytest.raises(InputError, match="expected records of at most 9 tokens, .* found one of 10"):
        engine.score_completions([[1] * 6], [[2] * 4])
    assert not (tmp_path / "vllm.log").exists()


def test_no_more_requests_are_open_than_vllm_computes(models, tmp_path):
    assert make_engine(models, tmp_path, arguments={"max_num_seqs": 3}).server.concurrency == 3
    assert make_engine(models, tmp_path).server.concurrency == 16
    assert make_engine(models, tmp_path, "a").server.concurrency == 1  # see `build_command`


def test_an_older_vllm_is_refused(models, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_server, "OLDEST", (0, 33))
    with pytest.raises(InputError, match="expected vLLM 0.33 or newer, found 0.32.0"):
        answer(make_engine(models, tmp_path))
    assert find_processes(tmp_path) == []


def test_a_conversation_is_sent_as_the_tokens_of_all_its_turns():
    chat = ChatTemplate(build_tokenizer(template=TOOLS))
    fields = get_fields(make_conversation(teacher_prompt="Think."))
    client = TokenClient(chat, [2], "m", Sampling(), "http://localhost:1/v1")
    settings = client.build_settings(make_request({"id": 0, "uid": "0"} | fields, to_teacher=True))
    assert settings["prompt"] == chat.encode_conversation(read_teacher_conversation(fields))
    assert "messages" not in settings
