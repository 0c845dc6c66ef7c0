"""The benchmarks of the step and of a GPU compare ways that do the same, and refuse others."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types

import psutil
import pytest
import torch
from benchmark_modules import import_benchmark
from running import ROOT
from tiny import build_tokenizer, save_model

from distill.common.errors import InputError
from distill.models.load import load_model

gpu = import_benchmark("gpu")
gpu_measure = import_benchmark("gpu_measure")
gpu_parts = import_benchmark("gpu_parts")
job = import_benchmark("job")
kd_step = import_benchmark("kd_step")
limited_process = import_benchmark("limited_process")
packing = import_benchmark("packing")
planned_peak = import_benchmark("planned_peak")
kd_ways = import_benchmark("kd_ways")
shapes = import_benchmark("shapes")

WAYS = ["plain", "online", "hidden", "topk"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Each way in this process, on a tiny shape."""
    folder = tmp_path_factory.mktemp("signals")
    shape = ["--shape", "tiny", "--prompt-tokens", "20", "--completion-tokens", "8", "--top-k", "16", "--steps", "1"]
    args = kd_step.parse_args([*shape, "--device", "cpu"])
    expected = kd_ways.expected_losses(args, torch.device("cpu"), folder)
    return {way: kd_step.measure(way, args, folder) for way in WAYS}, expected


def test_ways_have_the_losses_that_they_should(measured):
    ways, expected = measured
    kd_step.check_losses(ways, expected, "fp32")
    assert ways["plain"]["first_loss"] == pytest.approx(ways["online"]["first_loss"], rel=1e-5)
    assert ways["topk"]["first_loss"] < ways["online"]["first_loss"]


def test_a_way_that_does_something_else_is_refused(measured):
    ways, expected = measured
    with pytest.raises(InputError, match="online: expected a first loss of"):
        kd_step.check_losses(ways | {"online": {"first_loss": expected["online"] * 1.01}}, expected, "fp32")
    with pytest.raises(InputError, match="topk: expected a loss below the exact one"):
        kd_step.check_losses({"topk": {"first_loss": expected["online"] * 1.01}}, expected, "fp32")


def test_ratios_and_table_are_of_what_was_measured():
    ways = {
        "plain": {"seconds": 6.0, "peak_memory_mb": 4096, "completion_tokens_per_second": 10.0},
        "liger": {"failed": "no GPU"},
        "online": {"seconds": 2.0, "peak_memory_mb": 1024, "completion_tokens_per_second": 30.0},
    }
    assert kd_step.ratios(ways) == {"online": {"plain": {"speed": 3.0, "memory": 0.25}}}
    assert "| online | 2.00 | 30 | 1.0 | 3.0 × |" in kd_step.table({"ways": ways})
    assert "| liger | no GPU |" in kd_step.table({"ways": ways})


def test_packed_and_plain_steps_have_the_same_losses_in_fewer_micro_batches(tmp_path, monkeypatch):
    model = save_model(tmp_path / "model", build_tokenizer(), vocabulary=352, hidden=16)
    args = packing.parse_args(["--model", model, "--steps", "2", "--device", "cpu"])
    plain, packed = (packing.summarize(steps) for steps in packing.measure(args).values())
    assert packed["losses"] == pytest.approx(plain["losses"], rel=1e-4)
    assert packed["micro_batches"] < plain["micro_batches"] == args.accumulation
    monkeypatch.setattr(packing, "pack_step", lambda examples, *sizes: [examples[1:]])
    with pytest.raises(InputError, match="expected the same loss in both ways"):
        packing.measure(args)


def test_operations_are_those_of_the_matrix_products():
    """A pair of models by hand: 2 multiplications and additions a weight and token, thrice with a backward pass."""
    found = kd_ways.count_operations("tiny", batch=2, prompt=6, completion=4)
    teacher_vocabulary, vocabulary = shapes.SHAPES["tiny"][0].vocab_size, shapes.SHAPES["tiny"][2]
    teacher_layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 64 * 10  # projections, feed-forward, half of the mixing
    student_layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 32 * 10
    student = 3 * (2 * 2 * 20 * student_layer + 8 * 2 * 32 * vocabulary)
    assert found["topk"] == student
    assert found["hidden"] == student + 8 * 2 * 64 * teacher_vocabulary
    assert found["online"] == found["hidden"] + 2 * 2 * 20 * teacher_layer


# ---- The benchmark of a GPU ----

CPU = torch.device("cpu")
TINY = gpu_parts.make_settings("tiny", "cpu")
TINY_RUN = ["--shape", "tiny", "--device", "cpu"]
MACHINE = {"cpu": "a processor", "gpu": None, "torch": "2.13.0", "transformers": "5.23.0"}
# What transformers 5.17 does not have.
OLD_TRANSFORMERS = """
from transformers import AutoTokenizer, PreTrainedModel, Qwen2ForCausalLM  # they import what is removed here
from transformers.utils import chat_template_utils

for name in ("_CONTROL_TOKEN_START", "_CONTROL_TOKEN_END", "encode_marked_chat", "mark_control_tokens"):
    delattr(chat_template_utils, name)
PreTrainedModel.gradient_checkpointing_enable = PreTrainedModel.activation_checkpointing_enable
del PreTrainedModel.activation_checkpointing_enable
"""


def name_measurement(name):
    return next(one for one in gpu_parts.list_measurements() if one.name == name)


@pytest.fixture(scope="module")
def steps_folder(tmp_path_factory):
    """What the training steps of batch 2 need."""
    folder = tmp_path_factory.mktemp("steps")
    gpu_measure.prepare_steps(TINY, 2, folder)
    return folder


@pytest.mark.parametrize("way", [way for way, (package, _) in gpu_parts.STEP_WAYS.items() if package != "trl"])
def test_a_step_is_measured_and_checked(way, steps_folder):
    if way == "liger":
        pytest.importorskip("liger_kernel")
    found = gpu_measure.measure(name_measurement(f"kd_step/2/{way}"), TINY, steps_folder)
    assert found["seconds"] > 0
    assert found["peak_resident_mb"] > 0
    if way not in ("topk", "liger"):
        assert found["first_loss"] == pytest.approx(found["expected_loss"], rel=0.02)


def test_a_step_with_another_loss_is_refused(steps_folder, tmp_path):
    shutil.copytree(steps_folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "expected.json"
    losses = json.loads(path.read_text())["expected_losses"]
    path.write_text(json.dumps({"expected_losses": losses | {"hidden": losses["hidden"] * 1.05}}))
    with pytest.raises(InputError, match="hidden: expected a first loss of"):
        gpu_measure.measure(name_measurement("kd_step/2/hidden"), TINY, tmp_path)


@pytest.mark.parametrize("way", ["one", "batches_of_16", "ours"])
def test_generation_is_measured(way, tmp_path):
    found = gpu_measure.measure(name_measurement(f"generation/{way}"), TINY, tmp_path)
    count = {"one": 2, "batches_of_16": 16, "ours": 24}[way]
    _, longest = gpu_measure.make_prompts(count, TINY)
    assert (found["records"], found["generated_tokens"]) == (count, sum(longest))
    assert len(set(longest)) > 1


def test_other_answers_than_those_of_generate_are_refused(monkeypatch):
    gpu_measure.check_answers(CPU)
    answer = gpu_measure.answer_rolling

    def change(*arguments):
        found = answer(*arguments)
        found[3][-1] += 1
        return found

    monkeypatch.setattr(gpu_measure, "answer_rolling", change)
    with pytest.raises(InputError, match="found others in 1 of 12 answers"):
        gpu_measure.check_answers(CPU)


def test_vllm_gets_the_same_prompts_and_lengths_without_weights(monkeypatch, tmp_path):
    """A stand-in for vLLM, which is not part of the environment."""
    seen = {}

    class Engine:
        def __init__(self, **settings):
            seen.update(settings)
            seen["files"] = sorted(path.name for path in (tmp_path / "vllm").iterdir())

        def generate(self, prompts, sampling, use_tqdm):
            seen["prompts"] = prompts
            answers = [types.SimpleNamespace(token_ids=[1] * one["max_tokens"]) for one in sampling]
            return [types.SimpleNamespace(outputs=[answer]) for answer in answers]

    vllm = types.ModuleType("vllm")
    vllm.LLM, vllm.SamplingParams = Engine, dict
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    found = gpu_measure.measure(name_measurement("generation/vllm"), TINY, tmp_path)
    prompts, longest = gpu_measure.make_prompts(24, TINY)
    assert seen["prompts"] == [{"prompt_token_ids": prompt} for prompt in prompts]
    assert (found["generated_tokens"], found["package"]) == (sum(longest), "vllm of unknown version")
    assert seen["load_format"] == "dummy"
    assert "config.json" in seen["files"]
    assert not any(name.endswith(".safetensors") for name in seen["files"])
    assert shapes.SHAPES["tiny"][0].architectures is None  # the shape that other measurements use is unchanged


@pytest.mark.parametrize("kind", gpu_parts.SIGNALS)
def test_a_signal_is_measured_and_checked(kind, tmp_path, monkeypatch):
    found = gpu_measure.measure(name_measurement(f"signals/{kind}"), TINY, tmp_path)
    assert found["records"] == TINY["signal_records"]
    assert found["tokens_per_second"] == pytest.approx(4 * found["completion_tokens_per_second"], rel=1e-3)
    check = gpu_measure.check_signal

    def change(teacher, example, signal):
        other = {"hidden": signal["hidden"].roll(1, 0)} if kind == "hidden" else {"log_tail": signal["log_tail"] - 1}
        return check(teacher, example, signal | other)

    monkeypatch.setattr(gpu_measure, "check_signal", change)
    with pytest.raises(InputError, match=f"signals/{kind}: expected the distribution of the model's logits"):
        gpu_measure.measure(name_measurement(f"signals/{kind}"), TINY, tmp_path)


def test_int8_in_memory_is_what_is_loaded_from_a_folder(tmp_path):
    config, _, vocabulary = shapes.SHAPES["tiny"]
    shapes.build(config, 2, torch.bfloat16, CPU).save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), CPU, torch.bfloat16, "int8", for_generation=False)
    made = shapes.build(config, 2, torch.bfloat16, CPU).eval().requires_grad_(False)
    shapes.quantize_int8(made)
    assert {name: type(one) for name, one in made.named_modules()} == {
        name: type(one) for name, one in loaded.named_modules()
    }
    ids = torch.randint(vocabulary, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(made(input_ids=ids).logits, loaded(input_ids=ids).logits)


def test_runs_with_an_older_transformers(tmp_path):
    """Stands in for transformers 5.17 by removing what it does not have."""
    code = f"""{OLD_TRANSFORMERS}
import json, sys
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
from pathlib import Path
import gpu_measure
import torch
torch.set_num_threads(1)
gpu_measure.prepare_steps({TINY!r}, 2, Path({str(tmp_path)!r}))
for part, way, batch in (("kd_step", "online", 2), ("generation", "ours", None), ("signals", "topk", None)):
    one = gpu_measure.Measurement(part, way, batch)
    assert gpu_measure.measure(one, {TINY!r}, Path({str(tmp_path)!r}))["seconds"] > 0
import planned_peak
one = {{"part": "kd_step", "way": "topk", "batch": 2}}
job = {{"settings": {TINY | {"prompt_tokens": 2000}!r}, "total_bytes": None, "measurements": {{"step": one}}}}
assert planned_peak.plan_all(job)["step"]["peak_resident_mb"] > 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_parts_are_chosen_by_name():
    names = {one.name for one in gpu_parts.choose_measurements(["kd_step"])}
    assert names == {f"kd_step/{batch}/{way}" for batch in (2, 8) for way in gpu_parts.STEP_WAYS}
    memory = {one.name for one in gpu_parts.choose_measurements(["memory"])}
    ways = ("online", "online_int8", "hidden", "topk")
    assert memory == {f"kd_step/{batch}/{way}" for batch in (2, 8) for way in ways} | {
        "generation/ours", "signals/hidden", "signals/topk"
    }  # fmt: skip
    assert len(gpu_parts.choose_measurements([])) == len(gpu_parts.list_measurements())


def test_an_unknown_part_is_an_error_that_lists_them(capsys):
    with pytest.raises(InputError, match="expected parts among generation, kd_step, signals, memory, found speed"):
        gpu.main(["--only", "kd_step,speed", *TINY_RUN])


def test_without_a_gpu_the_error_says_so(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match="expected a CUDA GPU, found none .*; DEVICE=cpu SHAPE=tiny rehearses"):
        gpu.main(["--only", "signals"])


def test_results_of_another_machine_or_with_other_settings_are_refused(tmp_path):
    path = tmp_path / "results.json"
    settings = {"shape": "tiny", "device": "cpu"}
    path.write_text(json.dumps(gpu.open_results(path, MACHINE, settings)))
    assert gpu.open_results(path, MACHINE, settings)["machine"] == MACHINE
    with pytest.raises(InputError, match=r"this machine \(torch '2.11.0'\), found '2.13.0'; choose another file"):
        gpu.open_results(path, MACHINE | {"torch": "2.11.0"}, settings)
    with pytest.raises(InputError, match=r"this machine \(gpu 'NVIDIA H100'\), found None"):
        gpu.open_results(path, MACHINE | {"gpu": "NVIDIA H100"}, settings)
    with pytest.raises(InputError, match=r"this settings \(shape 'full'\), found 'tiny'"):
        gpu.open_results(path, MACHINE, settings | {"shape": "full"})
    for text in ("[]", "{}", "{", '{"machine": 1, "settings": {}, "measurements": [], "planned": {}}'):
        path.write_text(text)
        with pytest.raises(InputError, match="expected results of this benchmark"):
            gpu.open_results(path, MACHINE, settings)


@pytest.fixture
def fake_jobs(monkeypatch):
    """Jobs that do nothing; `outcomes` says what comes of some, by the measurement or kind of job."""
    outcomes, asked = {}, []

    def run_job(job, seconds):
        name = gpu.Measurement(**job["measurement"]).name if job["kind"] == "measure" else job["kind"]
        asked.append(name)
        peak = {"peak_allocated_mb": 2048, "peak_reserved_mb": 3072}
        row = {"seconds": 2.0, "records": 3, "tokens_per_second": 7.0, "completion_tokens_per_second": 5.0, **peak}
        usual = {"describe": {"result": MACHINE | {"gpu": "NVIDIA X 80GB", "gpu_memory_mb": 81920}}}
        return outcomes.get(name) or usual.get(name) or {"result": row if job["kind"] == "measure" else {}}

    monkeypatch.setattr(gpu, "run_job", run_job)
    monkeypatch.setattr(gpu, "find_spec", lambda package: None if package in ("trl", "vllm") else package)
    return outcomes, asked


def run_fake(path, *options):
    """Run the benchmark on fake jobs; return its exit code and the results."""
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--out", str(path), *options])
    return ended.value.code, json.loads(path.read_text())


def test_a_failure_is_recorded_and_the_rest_is_measured(fake_jobs, tmp_path, capsys):
    outcomes, asked = fake_jobs
    outcomes["kd_step/8/plain"] = {"failed": "out of memory: Tried to allocate 20.00 GiB", "log": "a traceback"}
    code, found = run_fake(tmp_path / "results.json")
    rows, output = found["measurements"], capsys.readouterr()
    assert code == 0  # an alternative may fail
    assert rows["kd_step/8/plain"]["failed"] == "out of memory: Tried to allocate 20.00 GiB"
    assert "log" not in rows["kd_step/8/plain"]
    assert "a traceback" in output.err
    assert rows["generation/vllm"]["skipped"] == "vllm is not installed"
    assert len(rows) == len(gpu_parts.list_measurements())
    assert sum("seconds" in row for row in rows.values()) == len(rows) - 6  # vLLM, four of TRL, and the failure
    assert "| plain | failed: out of memory: Tried to allocate 20.00 GiB |" in output.out
    assert "| vllm | vllm is not installed |" in output.out
    assert "| **topk** | 2.00 | 5.00 | 2.0 (3.0 reserved) | 1.00 |" in output.out
    outcomes["kd_step/2/topk"] = {"failed": "AssertionError"}
    code, _ = run_fake(tmp_path / "others.json")
    assert code == 1  # this project's own code may not
    assert "error: failed: kd_step/2/topk" in capsys.readouterr().err


def test_a_further_run_measures_what_has_no_result(fake_jobs, tmp_path):
    outcomes, asked = fake_jobs
    path = tmp_path / "results.json"
    outcomes["prepare"] = {"failed": "ValueError: no"}
    code, found = run_fake(path, "--only", "kd_step,signals")
    assert code == 1
    assert found["measurements"]["kd_step/2/plain"]["failed"] == "its preparation failed: ValueError: no"
    assert asked.count("prepare") == 2  # once for each batch
    outcomes.clear()
    asked.clear()
    code, found = run_fake(path, "--only", "kd_step,signals")
    assert code == 0
    assert found["ratios"]["kd_step/8"]["topk"]["online"] == {"speed": 1.0, "memory": 1.0}
    assert not any(name.startswith("signals") for name in asked)
    asked.clear()
    run_fake(path, "--only", "kd_step,signals")
    assert set(asked) == {"describe", "plan"}


def test_without_time_nothing_more_is_started(fake_jobs, tmp_path, capsys):
    path = tmp_path / "results.json"
    code, found = run_fake(path, "--minutes", "0.01")
    assert code == 0
    assert found["measurements"]["kd_step/2/online"]["skipped"] == "no time was left"
    assert f"for the others run `make bench-gpu OUT={path}`" in capsys.readouterr().out


def test_the_plan_stands_beside_what_was_measured(fake_jobs, tmp_path, capsys):
    outcomes, _ = fake_jobs
    planned = {"peak_allocated_mb": 1946, "peak_reserved_mb": 3072}
    outcomes["plan"] = {"result": {"kd_step/2/online": planned, "signals/topk": {"failed": "KeyError: 'x'"}}}
    _, found = run_fake(tmp_path / "results.json", "--only", "memory")
    assert found["planned"]["kd_step/2/online"] == planned
    table = capsys.readouterr().out
    assert "| kd_step/2/online | 2.0 (3.0 reserved) | 1.9 (3.0 reserved) | -5.0% |" in table
    assert "| signals/topk | 2.0 (3.0 reserved) | failed: KeyError: 'x' |" in table


@pytest.mark.parametrize(
    "name", [one.name for one in gpu_parts.choose_measurements(["memory"]) if one.batch in (None, 2)]
)
def test_every_measurement_of_this_project_has_a_plan(name):
    one = name_measurement(name)
    task = {"settings": TINY | {"prompt_tokens": 2000}, "total_bytes": None}
    task["measurements"] = {name: {"part": one.part, "way": one.way, "batch": one.batch}}
    assert planned_peak.plan_all(task)[name]["peak_resident_mb"] > 0


def test_the_default_file_is_named_after_card_and_day():
    name = gpu.name_results({"gpu": "NVIDIA H100 80GB HBM3"}, gpu_parts.FULL).name
    assert name.startswith("gpu_nvidia-h100-80gb-hbm3_20")
    assert gpu.name_results({"gpu": None}, "tiny").name.startswith("gpu_cpu_tiny_20")


def test_a_job_ends_at_its_time_limit():
    measurement = {"kind": "measure", "settings": TINY, "folder": "", "measurement": {"part": "signals", "way": "topk"}}
    assert limited_process.run_job(measurement, 0.2)["failed"] == "stopped after 0 s, the time limit"


def test_a_job_without_result_says_how_it_ended(tmp_path, monkeypatch):
    script = tmp_path / "gpu_measure.py"
    monkeypatch.setattr(limited_process, "FOLDER", tmp_path)
    script.write_text("import no_such_package")
    outcome = limited_process.run_job({"kind": "measure"}, 60)
    assert (
        outcome["failed"]
        == "the process ended with exit code 1: ModuleNotFoundError: No module named 'no_such_package'"
    )
    assert "Traceback" in outcome["log"]
    script.write_text("import os; os.kill(os.getpid(), 9)")
    assert "probably because the machine's memory ran out" in limited_process.run_job({"kind": "measure"}, 60)["failed"]


def test_errors_are_explained_in_one_line():
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 80 GiB"
    )
    assert job.explain(error) == "out of memory: Tried to allocate 20.00 GiB"
    assert job.explain(RuntimeError("CUDA error: out of memory")) == "out of memory: CUDA error: out of memory"
    assert job.explain(ValueError("two\nlines")) == "ValueError: two lines"
    assert job.explain(AssertionError()) == "AssertionError"


def start_signals(path):
    """Start the real benchmark of the signals."""
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--only", "signals", *TINY_RUN, "--out", path]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stopped_run_keeps_its_results_and_continues(number, tmp_path):
    path = tmp_path / "results.json"
    process = start_signals(path)
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)  # no further job starts unseen
    jobs = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, number)
    os.kill(process.pid, signal.SIGCONT)
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(jobs, timeout=60)
    assert not alive
    before = json.loads(path.read_text())["measurements"]
    assert list(before) == ["signals/hidden"]
    process = start_signals(path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    after = json.loads(path.read_text())["measurements"]
    assert after["signals/hidden"] == before["signals/hidden"]
    assert after["signals/topk"]["seconds"] > 0
    assert "| **topk** |" in output


@pytest.mark.slow
def test_make_bench_gpu_rehearses_everything_with_few_files(tmp_path):
    """As on a borrowed machine: a copy of the files that it needs, without an environment of its own."""
    for folder in ("benchmarks", "workflow/scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 60 * 2**20
    path = tmp_path / "results.json"
    command = ["make", "bench-gpu", "SHAPE=tiny", "DEVICE=cpu", f"OUT={path}", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(path.read_text())["measurements"]
    assert set(rows) == {one.name for one in gpu_parts.list_measurements()}
    assert all("seconds" in row or row["skipped"].endswith("is not installed") for row in rows.values())
    for heading in ("Generation", "Training step, batch 2", "Training step, batch 8", "Signals"):
        assert f"\n{heading}, 24 prompt tokens" in done.stdout
