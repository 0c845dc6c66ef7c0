"""Signals of a served teacher, against those that transformers computes, with a stand-in for vLLM."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from serving import free_port
from tiny import build_model, save_model
from training_runs import log_lines, train_student
from vllm_runs import find_processes, misbehave
from vllm_stand_in import write_executable

import check_signal
import compute_signal as script
from distill.common.errors import InputError
from distill.generation.vllm_server import is_healthy
from distill.models.final_layers import FinalLayers, find_final_norm
from distill.student.teacher_signal import HiddenSignal  # noqa: F401 - the trainings below read signals with it
from distill.teacher.compute_signal import compare_signal, compute_signal, encode, load_options_chat
from distill.teacher.served_teacher import ServedTeacher, close_buckets
from distill.teacher.signal_files import SignalReader

SETTINGS = {"hidden": 32, "seed": 1, "scale": 4.0}


@pytest.fixture
def teacher(tmp_path, tokenizer):
    """A teacher without padding in its vocabulary, which a random model would find likely."""
    return save_model(tmp_path / "served", tokenizer, vocabulary=320, **SETTINGS)


@pytest.fixture
def adapter(tmp_path):
    torch.manual_seed(3)
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(build_model(vocabulary=320, **SETTINGS), lora).save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


@pytest.fixture
def signal(tmp_path, teacher, monkeypatch):
    """Options of compute_signal.py with an engine."""
    monkeypatch.chdir(tmp_path)  # the server's log
    executable = str(write_executable(tmp_path / "bin"))

    def make(kind="topk", engine="vllm", out="signal", top_k=8, temperature=1.0, **changes):
        argv = ["--data", "unused", "--kind", kind, "--out", str(tmp_path / f"{out}_{engine}"), "--engine", engine]
        argv += ["--examples", str(tmp_path / "examples")]
        argv += ["--model", teacher, "--dtype", "float32", "--device", "cpu", "--vllm-executable", executable]
        argv += ["--top-k", str(top_k), "--temperatures", str(temperature)] if kind == "topk" else []
        return vars(script.parse_args(argv)) | changes

    return make


def read_all(options):
    reader = SignalReader(options["out"])
    return {key: reader.read(key) for key in sorted(reader.records)}


@pytest.mark.parametrize(
    ("kind", "has_adapter"),
    [
        ("hidden", True),
        pytest.param("hidden", False, marks=pytest.mark.slow),
        pytest.param("topk", True, marks=pytest.mark.slow),
        ("topk", False),
    ],
)
def test_the_signal_is_that_of_transformers(signal, records, adapter, kind, has_adapter, tmp_path):
    made = [signal(kind, engine, adapter=adapter if has_adapter else None) for engine in ("vllm", "transformers")]
    for options in made:
        compute_signal(options, records, [])
    (found, expected), readers = map(read_all, made), [SignalReader(options["out"]) for options in made]
    assert readers[0].fingerprint == readers[1].fingerprint
    assert found.keys() == expected.keys()
    for key in expected:
        assert found[key].keys() == expected[key].keys()
        for name, tensor in expected[key].items():
            assert found[key][name].dtype == tensor.dtype
            if name == "ids":  # equally likely tokens may change places
                assert (found[key][name] == tensor).float().mean() > 0.9
            else:
                torch.testing.assert_close(found[key][name].float(), tensor.float(), rtol=1e-2, atol=1e-2)
    if kind == "hidden":
        heads = [reader.head(torch.device("cpu")).state_dict() for reader in readers]
        assert torch.equal(heads[0]["weight"], heads[1]["weight"])
    # check_signal.py compares with either engine.
    for engine in ("vllm", "transformers"):
        options = signal(kind, engine, adapter=made[0]["adapter"])
        changes = {"signal": made[0]["out"], "records": 3, "seed": 0, "max_length": 10**6, "data": "unused"}
        assert max(divergence for *_, divergence, _ in compare_signal(options | changes, records)) < 1e-3
    assert find_processes(tmp_path) == []
    assert not list(Path(tmp_path).rglob("states"))


@pytest.mark.slow
def test_in_16_bits_the_hidden_states_are_those_of_transformers(signal, records):
    """As every teacher of real size is."""
    made = [signal("hidden", engine, dtype="bfloat16") for engine in ("vllm", "transformers")]
    for options in made:
        compute_signal(options, records, [])
    found, expected = map(read_all, made)
    for key, tensors in expected.items():
        torch.testing.assert_close(found[key]["hidden"].float(), tensors["hidden"].float(), rtol=2e-2, atol=2e-2)


@pytest.mark.slow
def test_a_student_begins_with_the_same_loss(signal, records, options, teacher):
    losses = []
    for engine in ("vllm", "transformers"):
        made = signal("hidden", engine)
        compute_signal(made, records, [])
        run = options(
            out=f"out_{engine}", signal="hidden", signal_folders=[made["out"]], teacher_model=teacher, logging_steps=1
        )
        train_student(run, records, [])
        losses.append([line["kd"] for line in log_lines(run) if "kd" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # bfloat16 has 8 bits


@pytest.mark.slow
def test_a_resumed_run_computes_what_is_missing_and_checks_what_is_there(signal, records):
    options = signal("hidden")
    compute_signal(options, records[:3], [])
    compute_signal(options, records, [])
    counts = json.loads((Path(options["out"]) / "stats.json").read_text())
    assert (counts["from_cache"], counts["computed"]) == (3, len(records) - 3)


def test_states_that_do_not_give_the_servers_log_probabilities_are_refused(signal, records, monkeypatch):
    misbehave(monkeypatch, wrong_hidden=3.0)
    with pytest.raises(InputError, match="the final norm, the head or what follows it are not those of the served"):
        compute_signal(signal("hidden"), records, [])


@pytest.mark.slow
def test_log_probabilities_that_cannot_be_right_are_refused(signal, records, monkeypatch):
    misbehave(monkeypatch, wrong_logprobs=0.3)
    with pytest.raises(InputError, match="expected probabilities that sum to at most 1, found"):
        compute_signal(signal(top_k=64), records, [])


@pytest.mark.slow
def test_padding_among_the_likely_tokens_is_refused(signal, records, models):
    with pytest.raises(InputError, match="lower top_k, or use signal hidden"):
        compute_signal(signal(top_k=64, model=models["teacher"]), records, [])
    compute_signal(signal("hidden", out="padded", model=models["teacher"]), records, [])


def test_other_temperatures_are_refused_with_a_remedy(signal, records):
    with pytest.raises(InputError, match="expected 1 with --engine vllm.* found 2.0; use signal hidden"):
        compute_signal(signal(temperature=2.0), records, [])


@pytest.mark.slow
def test_quantization_of_vllm_is_part_of_the_signal(signal, records, options, teacher):
    made = signal("hidden", vllm_arguments={"quantization": "fp8", "max_model_len": 512})
    compute_signal(made, records, [])
    assert SignalReader(made["out"]).parts["serving"] == {"engine": "vllm", "quantization": "fp8"}
    run = options(signal="hidden", signal_folders=[made["out"]], teacher_model=teacher)
    with pytest.raises(InputError, match="the server that computed it: expected None, found .*fp8"):
        train_student(run, records, [])
    train_student(options(
        signal="hidden", signal_folders=[made["out"]], teacher_model=teacher,
        teacher_serving={"engine": "vllm", "quantization": "fp8"},
    ), records, [])  # fmt: skip


def test_any_server_with_prompt_logprobs_gives_topk(signal, records, teacher, tmp_path):
    port, program = free_port(), write_executable(tmp_path / "other")
    command = [program, "serve", teacher, "--served-model-name", "m", "--port", str(port), "--host", "127.0.0.1"]
    server = subprocess.Popen([*command, "--dtype", "float32", "--max-logprobs", "8"], stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/v1"
    try:
        while not is_healthy(address):
            assert server.poll() is None
        served = {"model": "m", "base_url": address, "tokenizer": teacher}
        options, plain = signal(engine="openai", **served), signal(engine="transformers")
        for made in (options, plain):
            compute_signal(made, records, [])
        found, expected = map(read_all, (options, plain))
        assert found.keys() == expected.keys()
        for key, tensors in expected.items():
            torch.testing.assert_close(found[key]["logprobs"], tensors["logprobs"], rtol=1e-2, atol=1e-2)
        assert SignalReader(options["out"]).parts["serving"] == {"engine": "openai", "weights": "served"}
        with pytest.raises(InputError, match="expected topk with --engine openai, found hidden"):
            compute_signal(signal("hidden", engine="openai", **served), records, [])
        with pytest.raises(InputError, match="--tail-samples: expected none with --engine openai(?s:.*)found 4"):
            compute_signal(signal(engine="openai", tail_samples=4, **served), records, [])
        with pytest.raises(InputError, match="Requested prompt logprobs of 9, which is greater than max allowed: 8"):
            compute_signal(signal(engine="openai", out="more", top_k=9, **served), records, [])
    finally:
        server.terminate()
        server.wait()


def test_the_final_layers_are_those_of_the_model(teacher, models):
    final = FinalLayers(teacher, torch.float32)
    model = build_model(vocabulary=320, **SETTINGS)
    states = torch.randn(5, 32)
    expected = model.lm_head(model.model.norm(states))
    assert final.layers == 2
    torch.testing.assert_close(final.project(final.normalize(states)), expected)


def test_a_decoder_with_several_norms_behind_its_layers_is_refused():
    norms = torch.nn.ModuleDict({"norm": torch.nn.LayerNorm(2), "other": torch.nn.RMSNorm(2)})
    with pytest.raises(InputError, match="expected one norm behind the layers, found norm, other"):
        find_final_norm("m", norms)


def test_a_signal_of_quite_other_tokens_diverges(signal, records, tokenizer, tmp_path):
    """The compared positions share no token with it."""
    sure = save_model(tmp_path / "sure", tokenizer, vocabulary=320, **(SETTINGS | {"scale": 60.0}))
    made = signal(model=sure)
    compute_signal(made, records, [])
    reader = SignalReader(made["out"])
    key = next(iter(reader.records))
    chat = load_options_chat(made)
    examples, _ = encode(records, chat, 10**6)
    teacher = ServedTeacher(made, chat, reader.vocabulary)
    right = reader.read(key)
    wrong = right | {"ids": (right["ids"] + 160) % 320}
    assert teacher.compare(examples[key], right)[0] < 1e-3
    assert teacher.compare(examples[key], wrong)[0] > 0.05
    teacher.close()


def test_files_of_hidden_states_are_removed_as_soon_as_they_are_read(signal, records):
    """Requests for log-probabilities, with which they are checked, make some, too."""
    made = signal("hidden")
    chat = load_options_chat(made)
    examples = list(encode(records, chat, 10**6)[0].values())
    teacher = ServedTeacher(made, chat, 320)
    teacher.compute(examples)
    assert list(teacher.folder.iterdir()) == []
    teacher.close()


def test_buckets_sum_to_one():
    found = torch.tensor(close_buckets(torch.tensor([0.5, 0.25]).log().tolist())).exp()
    torch.testing.assert_close(found, torch.tensor([0.5, 0.25, 0.25]))


def test_the_command_lines_name_the_engines_that_compute_signals(capsys):
    for one in (script, check_signal):
        with pytest.raises(SystemExit):
            one.parse_args(["--help"])
        assert "--engine {transformers,vllm,openai}" in capsys.readouterr().out.replace("\n", " ")
