"""Start Snakemake and its jobs from a process that has imported torch, transformers and Snakemake already.

Most jobs of the tests compute for less than a second, after imports that take four. Here one process imports, and forks
for each of them. A job still is a process of its own, with its own arguments, environment, folder, standard streams and
exit code. But it gets no signals, so tests that kill a run start it the usual way, and so do jobs that run until a
signal.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

MODULES = (
    "torch",
    "peft",
    "datasets",
    "bitsandbytes",
    "safetensors.torch",
    "transformers.trainer",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen2.modeling_qwen2",
    "snakemake.cli",
    "snakemake_executor_plugin_slurm",
)
# Libraries read variables of these names when they are imported, so that a job with other values starts the usual way.
READ_AT_IMPORT = ("CUDA_VISIBLE_DEVICES", "HF_", "LD_", "TRANSFORMERS_")
PROGRAMS = ("python", "snakemake")
SERVICE = "serve_teacher.py"  # runs until a signal
OTHER_START = b"other"
LARGEST_REQUEST = 2**17


def start(environment):
    """Start the process that imports, and return a folder with `python` and `snakemake` for the front of PATH.

    The process ends with the caller, which calls this once.

    Args:
        environment: variables of the jobs, except those that Snakemake sets.
    """
    folder = Path(tempfile.mkdtemp(prefix="stillhouse-python-"))
    command = [sys.executable, __file__, folder]
    server = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout.read(1), "the process that imports the libraries of the jobs did not start"
    for program in PROGRAMS:
        command = shlex.join([sys.executable, "-IS", __file__, str(folder), program])
        (folder / program).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / program).chmod(0o755)
    atexit.register(shutil.rmtree, folder)
    atexit.register(server.communicate)  # Ends the server, whose standard input ends.
    return folder


def ask(folder, program, arguments):
    """Run a program in a fork of the server, and end with its exit code."""
    first = Path(arguments[0]).name if arguments else ""
    if program == "snakemake" or first == "-m" or (first.endswith(".py") and first != SERVICE):
        request = {"program": program, "arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(folder / "socket"))
            socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
            answer = connection.recv(LARGEST_REQUEST)
        if answer != OTHER_START:
            end_with(int(answer))
    usual = str(Path(sys.executable).parent / program)
    os.execv(usual, [usual, *arguments])


def end_with(status):
    """End this process with an exit code, or by a signal if the code is negative."""
    if status < 0:
        if -status != signal.SIGKILL:  # whose effect cannot be set
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def choose_variables(environment):
    """Return the variables that must be those of the server."""
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT)}


def serve(folder):
    """Fork for each request until the standard input ends; return the request in the fork that runs it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    variables = choose_variables(os.environ)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(folder / "socket"))
    listener.listen(64)
    os.write(1, b"\n")
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()
    while True:
        if 0 in select.select([0, listener], [], [])[0]:
            sys.exit()
        connection = listener.accept()[0]
        if os.fork() == 0:
            listener.close()
            return answer(connection, variables)
        connection.close()


def answer(connection, variables):
    """Answer one request: watch over its job, or return the request in the job's process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, streams, *_ = socket.recv_fds(connection, LARGEST_REQUEST, 3)
    request = json.loads(message)
    if choose_variables(request["environment"]) != variables:
        connection.send(OTHER_START)
        os._exit(0)
    job = os.fork()
    if job == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        return request
    for stream in (*streams, 0, 1, 2):
        os.close(stream)
    ended = os.pidfd_open(job)
    if connection in select.select([connection, ended], [], [])[0]:
        os.kill(job, signal.SIGKILL)  # The caller was killed.
    status = os.waitstatus_to_exitcode(os.waitpid(job, 0)[1])
    connection.send(str(status).encode())
    os._exit(0)


def run(request):
    """Run the script or module of a request, or Snakemake, in this process."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if request["program"] == "snakemake":
        sys.argv = [str(Path(sys.executable).parent / "snakemake"), *request["arguments"]]
        sys.path[0] = str(Path(sys.executable).parent)
        sys.exit(sys.modules["snakemake.cli"].main())
    if "OMP_NUM_THREADS" in os.environ:  # torch reads it when it is imported
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # Random numbers differ from job to job unless a job sets a seed; Python's own ones do so by themselves.
    sys.modules["torch"].seed()
    sys.modules["numpy"].random.seed()
    if request["arguments"][0] == "-m":
        sys.argv, sys.path[0] = request["arguments"][1:], os.getcwd()
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = request["arguments"]
        sys.path[0] = str(Path(sys.argv[0]).absolute().parent)
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    folder, *asked = sys.argv[1:]
    if asked:
        ask(Path(folder), asked[0], asked[1:])
    else:
        run(serve(Path(folder)))
