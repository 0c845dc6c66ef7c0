"""Jobs that tests fork from a process with all imports are like those that Python starts."""

import signal
import subprocess

import psutil
import pytest
from running import preloaded_environment

REPORT = """
import os, sys
print(sys.argv[1:], os.getcwd(), os.environ["WORD"], sys.path[0], __name__)
print(sys.stdin.read(), file=sys.stderr)
print("torch" in sys.modules, os.environ.get("HF_ENDPOINT"))
sys.exit(7)
"""


@pytest.fixture
def start(tmp_path):
    """Start Python code as a script in a folder, with further variables."""

    def start(code, *arguments, **variables):
        (tmp_path / "script.py").write_text(code)
        command = ["python", "script.py", *arguments]
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(command, cwd=tmp_path, env=preloaded_environment() | variables, text=True, **streams)

    return start


@pytest.mark.parametrize(("variables", "is_preloaded"), [({}, True), ({"HF_ENDPOINT": "http://localhost"}, False)])
def test_a_job_has_its_own_arguments_streams_and_variables(start, tmp_path, variables, is_preloaded):
    process = start(REPORT, "a", "b c", WORD="1", **variables)
    output, errors = process.communicate("input", timeout=120)
    first, second = output.splitlines()
    assert first == f"['a', 'b c'] {tmp_path} 1 {tmp_path} __main__"
    assert second == f"{is_preloaded} {variables.get('HF_ENDPOINT')}"
    assert errors == "input\n"
    assert process.returncode == 7


def test_a_job_that_is_killed_ends_its_caller_by_the_same_signal(start):
    process = start("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL


def test_a_job_ends_with_its_caller(start):
    process = start("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)")
    job = psutil.Process(int(process.stdout.readline()))
    assert job.pid != process.pid
    process.kill()
    job.wait(timeout=60)
    assert not job.is_running()


def test_jobs_that_set_no_seed_differ(start):
    """A missing seed must not stay unnoticed because all jobs begin in the same state."""
    code = "import random, numpy, torch\nprint(random.random(), numpy.random.rand(), torch.rand(1).item())"
    processes = [start(code, OMP_NUM_THREADS="1") for _ in range(2)]
    first, second = (process.communicate(timeout=120)[0].split() for process in processes)
    assert all(one != other for one, other in zip(first, second, strict=True))
