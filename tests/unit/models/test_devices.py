"""The device that a job computes on, and what is said where a GPU cannot be used."""

import os
import subprocess
import sys

import pytest
import torch
from running import SCRIPTS, environment
from training_runs import write_splits

import run_on_nodes
from distill.common import allocator, gpu_claims
from distill.common.errors import InputError, run_script
from distill.models import load
from distill.models.load import GPU_VARIABLES, find_cuda_problem, select_device

TOO_OLD = "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver"


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(load, "GPU_FILE", tmp_path / "nvidia0")
    monkeypatch.setattr(load, "limit_integrated", lambda device: None)
    for name in (*GPU_VARIABLES, *gpu_claims.DECIDED, gpu_claims.CLAIMED):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_gpu_is_used_if_there_is_one(monkeypatch, caplog):
    assert select_device("auto").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [select_device(name).type for name in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    assert caplog.text == ""


def test_a_gpu_that_cannot_be_used_is_an_error(monkeypatch, machine):
    (machine / "nvidia0").touch()
    with pytest.raises(InputError, match="has a GPU that cannot be used.*set `device: cpu`"):
        select_device("auto")
    assert select_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", GPU_VARIABLES)
def test_a_gpu_that_a_job_was_given_but_does_not_find_is_a_warning(monkeypatch, name, caplog):
    monkeypatch.setenv(name, "0")
    assert select_device("auto").type == "cpu"
    assert f"{name} names a GPU, but there is none" in caplog.text


def test_a_requested_gpu_is_needed():
    with pytest.raises(InputError, match=r"device: expected a CUDA GPU, found none \(.*\); set `device: cpu`"):
        select_device("cuda")


def test_the_reason_is_that_of_cuda(monkeypatch):
    def refuse():
        raise RuntimeError(f"{TOO_OLD}\nby downloading")

    monkeypatch.setattr(torch.cuda, "init", refuse)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert find_cuda_problem() == f"torch {torch.__version__} needs CUDA 13.0: {TOO_OLD}"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert find_cuda_problem() == f"torch {torch.__version__} is a build without CUDA"


# ---- Preparing a GPU ----


@pytest.fixture
def cudnn():
    """cuDNN's attention, as it was before."""
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.backends.cuda.enable_cudnn_sdp(enabled)


def test_attention_of_cudnn_is_off_on_a_gpu(monkeypatch, cudnn):
    torch.backends.cuda.enable_cudnn_sdp(True)
    select_device("auto")
    assert torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    select_device("auto")
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_launched_process_takes_its_own_gpu(monkeypatch, cudnn):
    chosen, limited = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(load, "limit_integrated", limited.append)
    select_device("auto")
    monkeypatch.setenv("LOCAL_RANK", "3")
    select_device("auto")
    assert chosen == [torch.device("cuda", 3)]
    assert limited == [torch.device("cuda", 0), torch.device("cuda", 3)]


# ---- Claims ----


NVML = """
#include <cstdio>
#include <cstdlib>
static const char *names[] = {"GPU-aaaa", "GPU-bbbb", "GPU-cccc"};
static int handles[3];
extern "C" {
int nvmlInit_v2() { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **gpu) { *gpu = handles + index; return index > 2; }
int nvmlDeviceGetUUID(void *gpu, char *text, unsigned length) {
  std::snprintf(text, length, "%s", names[static_cast<int *>(gpu) - handles]); return 0; }
int nvmlDeviceGetMigMode(void *gpu, unsigned *now, unsigned *later) {
  *now = *later = std::getenv("FAKE_MIG") != nullptr; return gpu == handles ? 3 : 0; }  // the first one has no parts
}
"""


@pytest.fixture(scope="session")
def nvml(tmp_path_factory):
    """A management library that knows three GPUs."""
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.cpp").write_text(NVML)
    library = folder / "nvml.so"
    subprocess.run(["g++", "-shared", "-fPIC", folder / "nvml.cpp", "-o", library], check=True)
    return library


@pytest.fixture
def three_gpus(monkeypatch, tmp_path, nvml):
    """A machine with three GPUs; returns a function that acts as a new process does, and gives its visible GPUs."""
    monkeypatch.setattr(gpu_claims, "LIBRARY", str(nvml))
    monkeypatch.setattr(gpu_claims.tempfile, "gettempdir", lambda: str(tmp_path))
    processes = []

    def start(count=1, device="auto", **variables):
        # A lock belongs to an open file, so claims with other lists of files behave like those of other processes.
        processes.append([])
        with monkeypatch.context() as patch:
            patch.setattr(gpu_claims, "_held", processes[-1])
            for name in ("CUDA_VISIBLE_DEVICES", gpu_claims.CLAIMED):
                patch.delenv(name, raising=False)
            for name, value in variables.items():
                patch.setenv(name, value)
            gpu_claims.claim_gpus(device, count)
            found = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get(gpu_claims.CLAIMED)
            for name in ("CUDA_VISIBLE_DEVICES", gpu_claims.CLAIMED):
                os.environ.pop(name, None)
        return found

    start.processes = processes
    yield start
    for files in processes:
        for file in files:
            file.close()


def test_every_process_claims_another_gpu_and_sees_the_others_after_it(three_gpus, caplog):
    assert three_gpus() == ("GPU-aaaa,GPU-bbbb,GPU-cccc", "GPU-aaaa")
    assert three_gpus() == ("GPU-bbbb,GPU-aaaa,GPU-cccc", "GPU-bbbb")
    assert three_gpus() == ("GPU-cccc,GPU-aaaa,GPU-bbbb", "GPU-cccc")
    assert caplog.text == ""
    assert three_gpus() == ("GPU-aaaa,GPU-bbbb,GPU-cccc", "GPU-aaaa")
    assert "only 0 of 3 GPUs are free" in caplog.text
    three_gpus.processes[1].pop().close()  # the second process ends
    assert three_gpus()[1] == "GPU-bbbb"


def test_processes_that_number_the_gpus_otherwise_claim_different_ones(three_gpus):
    assert three_gpus(CUDA_VISIBLE_DEVICES="2,0") == ("2,0", "2")
    assert three_gpus(CUDA_VISIBLE_DEVICES="GPU-cccc,GPU-bb") == ("GPU-bb,GPU-cccc", "GPU-bb")
    assert three_gpus(CUDA_VISIBLE_DEVICES="0,1,2") == ("0,1,2", "0")
    assert three_gpus(CUDA_VISIBLE_DEVICES="MIG-1,MIG-2") == ("MIG-1,MIG-2", "MIG-1")
    assert three_gpus(CUDA_VISIBLE_DEVICES="MIG-1,MIG-2") == ("MIG-2,MIG-1", "MIG-2")


def test_a_launcher_claims_a_gpu_for_each_of_its_processes(three_gpus, caplog):
    assert three_gpus() == ("GPU-aaaa,GPU-bbbb,GPU-cccc", "GPU-aaaa")
    assert three_gpus(2) == ("GPU-bbbb,GPU-cccc,GPU-aaaa", "GPU-bbbb,GPU-cccc")
    assert three_gpus(2)[1] == "GPU-aaaa,GPU-bbbb"
    assert "only 0 of 3" in caplog.text


@pytest.mark.parametrize("name", [*gpu_claims.DECIDED, gpu_claims.CLAIMED])
def test_nothing_is_claimed_where_slurm_a_launcher_or_a_parent_process_has_decided(three_gpus, name):
    assert three_gpus(**{name: "1"})[0] is None
    assert three_gpus.processes == [[]]


def test_a_single_gpu_and_unknown_ones_are_not_claimed(three_gpus, monkeypatch):
    assert three_gpus(CUDA_VISIBLE_DEVICES="1") == ("1", None)
    assert three_gpus(CUDA_VISIBLE_DEVICES="") == ("", None)

    assert three_gpus(FAKE_MIG="1") == (None, None)  # divided, and CUDA shows a part without a name
    monkeypatch.setattr(gpu_claims, "LIBRARY", "libmissing.so.1")
    assert three_gpus() == (None, None)
    assert three_gpus(CUDA_VISIBLE_DEVICES="0,1") == ("0,1", None)


def test_jobs_on_the_cpu_and_after_the_start_of_cuda_claim_nothing(three_gpus, monkeypatch):
    assert three_gpus(device="cpu") == (None, None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert three_gpus() == (None, None)


CLAIMING = """
import sys
from distill.common import gpu_claims
def claim(device, count=1):
    print(device, count, "torch" in sys.modules)
    raise SystemExit
gpu_claims.claim_gpus = claim
sys.argv = sys.argv[1:]
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("generate_answers", ["--prompts", "prompts", "--model", "m", "--out", "o", "--stats", "s", "--cache", "c"]),
        ("export_model", ["--student", "s", "--variant", "nf4", "--out", "o"]),
        (
            "train_student",
            ["--data", "data", "--name", "s", "--category", "c", "--model", "m", "--out", "o", "--method", "seqkd"],
        ),
        ("compute_signal", ["--data", "data", "--model", "m", "--out", "o", "--kind", "hidden"]),
    ],
)
def test_scripts_claim_before_they_import_torch(tmp_path, script, arguments):
    """bitsandbytes starts CUDA when it is imported, after which CUDA_VISIBLE_DEVICES is no longer read."""
    (tmp_path / "prompts").touch()
    write_splits(tmp_path / "data", [], [])
    done = subprocess.run(
        [sys.executable, "-c", CLAIMING, SCRIPTS / f"{script}.py", *arguments],
        cwd=tmp_path, env=environment() | {"PYTHONPATH": str(SCRIPTS)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "auto 1 False\n", done.stderr


def test_a_launcher_claims_as_many_gpus_as_it_starts_processes(monkeypatch):
    claims, started = [], []
    monkeypatch.setattr(run_on_nodes, "claim_gpus", lambda *found: claims.append(found))
    monkeypatch.setattr(run_on_nodes, "count_processes", lambda gpus: 2)
    monkeypatch.setattr(run_on_nodes, "start_processes", lambda args, processes: started.append(processes) or 0)
    with pytest.raises(SystemExit):
        run_on_nodes.main(["--nodes", "1", "--gpus", "2", "train_student.py"])
    assert (claims, started) == ([("cuda", 2)], [2])


# ---- Environment variables ----


@pytest.mark.parametrize("name", allocator.VARIABLES)
def test_scripts_use_expandable_segments_unless_the_user_decides(monkeypatch, name):
    for variable in allocator.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    run_script(lambda: None)
    assert os.environ.pop(allocator.VARIABLES[0]) == "expandable_segments:True"
    monkeypatch.setenv(name, "max_split_size_mb:64")
    run_script(lambda: None)
    assert [os.environ.get(variable) for variable in allocator.VARIABLES].count(None) == 1
    assert os.environ[name] == "max_split_size_mb:64"


@pytest.mark.parametrize(
    ("system", "release"), [("Darwin", "24.1"), ("Windows", "11"), ("Linux", "5.15-microsoft-standard-WSL2")]
)
def test_other_systems_keep_the_usual_segments(monkeypatch, system, release):
    for variable in allocator.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(allocator.platform, "system", lambda: system)
    monkeypatch.setattr(allocator.platform, "release", lambda: release)
    allocator.set_allocator()
    assert allocator.VARIABLES[0] not in os.environ


def test_no_script_imports_torch_before_its_environment_is_set():
    """torch's libraries read the settings when they are loaded."""
    names = [path.stem for path in SCRIPTS.glob("*.py")]
    code = f"import sys, {', '.join(names)}; print('torch' in sys.modules)"
    variables = environment() | {"PYTHONPATH": str(SCRIPTS)}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
