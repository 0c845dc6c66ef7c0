"""A vLLM server that a job starts for itself, on this machine or over a Slurm job's nodes, and takes down again."""

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from distill.common import supervisor
from distill.common.errors import InputError, cut
from distill.generation.engine import count_gpus
from distill.generation.options import VllmOptions
from distill.generation.vllm_nodes import list_arguments, list_other_nodes
from distill.models.fingerprint import read_shapes

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
BASE_NAME = "base"  # served name of the model without an adapter
OWN_ENVIRONMENT = Path(__file__).resolve().parents[4] / ".venv-vllm" / "bin" / "vllm"
PORT_ATTEMPTS = 3
OLDEST = (0, 32)  # vLLM's version that this was written for
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_LINES = 15.0
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank accepts
CONNECTORS = {  # by the type of the device
    "cuda": {"kv_connector": "ExampleHiddenStatesConnector"},
    "cpu": {
        "kv_connector": "CpuHiddenStatesConnector",
        "kv_connector_module_path": "distill.generation.vllm_connector",
    },
}
OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemory|No available memory for the cache blocks|less than desired [CG]PU memory|"
    r"larger than the maximum number of tokens that can be stored",
    re.IGNORECASE,
)
PORT_TAKEN = re.compile(r"address already in use|EADDRINUSE", re.IGNORECASE)
ERROR_LINE = re.compile(r"\b\w*(Error|Exception)\b: |error: ")
WRAPPER = re.compile(
    r"EngineDeadError|[Ss]ee (root cause|stack trace|the stack trace) above|Engine core initialization"
)


def find_executable(named: str | None) -> str:
    """Return the program that serves: the named one, or `vllm` on PATH, or that of `make setup-vllm`.

    Raises:
        InputError: there is none.
    """
    if named:
        found = shutil.which(os.path.expanduser(named))
        if found is None:
            raise InputError(f"teacher.vllm.executable: expected a program, found none at {named!r}")
        return found
    if found := shutil.which("vllm"):
        return found
    if OWN_ENVIRONMENT.exists():
        return str(OWN_ENVIRONMENT)
    raise InputError(
        "engine vllm: expected the program vllm on PATH or in .venv-vllm, found neither; run `make setup-vllm`, or "
        "name the program in teacher.vllm.executable"
    )


def read_rank(adapter: str) -> int:
    """Return the largest rank of a LoRA checkpoint.

    Raises:
        InputError: adapter_config.json cannot be read, or it is no LoRA that vLLM serves.
    """
    path = Path(adapter) / "adapter_config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        ranks = [int(found["r"]), *map(int, (found.get("rank_pattern") or {}).values())]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected the configuration of a LoRA with its rank r, found {error!r}") from None
    for name in ("modules_to_save", "use_dora"):
        if found.get(name):
            raise InputError(
                f"{path}: {name}: expected none with engine vllm, which does not serve such adapters, found "
                f"{found[name]!r}; merge the adapter into the model, or use engine transformers"
            )
    check_targets(adapter)
    return max(ranks)


def check_targets(adapter: str) -> None:
    """Check that an adapter changes neither head nor embeddings.

    vLLM applies the adapter of a head to the tokens that it samples, but not to all positions of a prompt, so that
    likelihoods and signals would be those of the plain head.

    Raises:
        InputError: it does; or its weights are missing or damaged.
    """
    path = Path(adapter) / "adapter_model.safetensors"
    names = read_shapes(adapter, path.name)
    if not names:
        raise InputError(f"{path}: expected the weights of a LoRA, which vLLM reads from this file, found none")
    for name in names:
        if set(name.split(".")) & {"lm_head", "embed_tokens", "wte", "embed_out"}:
            raise InputError(
                f"{path}: expected no adapter of head or embeddings with engine vllm, which does not apply them "
                f"everywhere, found {name}; merge the adapter into the model, or use engine transformers"
            )


def choose_rank(adapters: Sequence[str]) -> int:
    """Return the smallest --max-lora-rank that holds all adapters.

    Raises:
        InputError: see `read_rank`; or a rank is larger than vLLM allows.
    """
    ranks = {adapter: read_rank(adapter) for adapter in adapters}
    if not ranks:
        return RANKS[0]
    largest = max(ranks, key=lambda adapter: ranks[adapter])
    try:
        return next(rank for rank in RANKS if rank >= ranks[largest])
    except StopIteration:
        raise InputError(
            f"{largest}: expected a LoRA of rank {RANKS[-1]} or less with engine vllm, found rank {ranks[largest]}"
        ) from None


def format_arguments(arguments: Mapping[str, Any]) -> list[str]:
    """Return vLLM's options as words of a command line.

    >>> format_arguments({"max_model_len": 4096, "enforce_eager": True, "enable_prefix_caching": False})
    ['--max-model-len', '4096', '--enforce-eager', '--no-enable-prefix-caching']
    """
    words = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", value if isinstance(value, str) else json.dumps(value)]
    return words


def build_command(
    model: str,
    dtype: str,
    device: str,
    adapters: Mapping[str, str],
    options: VllmOptions,
    top_logprobs: int = 1,
    layers: int | None = None,
    folder: Path | None = None,
) -> list[str]:
    """Return the command that serves a model, without address and nodes.

    Args:
        model: local folder or hub id.
        dtype: data type of the weights.
        device: `cpu` or `cuda`.
        adapters: LoRA checkpoints by served name.
        options: the user's.
        top_logprobs: most likely tokens that a request may ask for at each position.
        layers: number of the model's layers, to extract the hidden states behind the last one; None extracts nothing.
        folder: where the hidden states are written.
    """
    arguments: dict[str, Any] = {"served_model_name": BASE_NAME, "dtype": dtype, "max_logprobs": top_logprobs}
    # The model's own generation_config.json is ignored: the teacher must sample from the distribution that the student
    # is trained towards.
    arguments |= {"generation_config": "vllm", "logprobs_mode": "raw_logprobs"}
    if adapters:
        arguments |= {"enable_lora": True, "max_lora_rank": choose_rank(list(adapters.values()))}
        arguments |= {"max_loras": min(len(adapters), 8)}
        if device == "cpu":  # vLLM 0.32 ends with an error when a batch asks for log-probabilities of several prompts
            arguments |= {"max_num_seqs": 1}
    if layers is not None:
        states = {"eagle_aux_hidden_state_layer_ids": [layers]}
        arguments["speculative_config"] = {
            "method": "extract_hidden_states",
            "num_speculative_tokens": 1,
            "draft_model_config": {"hf_config": states},
        }
        storage = {"shared_storage_path": str(folder)}
        transfer = {"kv_role": "kv_producer", "kv_connector_extra_config": storage}
        arguments["kv_transfer_config"] = CONNECTORS[device] | transfer
        # Each position must be computed, and a request's positions in one piece.
        arguments |= {"enable_prefix_caching": False, "enable_chunked_prefill": False}
    words = format_arguments(arguments | options.arguments)
    modules = [f"{name}={path}" for name, path in adapters.items()]
    return ["serve", model, *words, *(["--lora-modules", *modules] if modules else [])]


class VllmServer:
    """A running `vllm serve`; `stop` or the end of this process takes it down, see common/supervisor.py.

    Args:
        command: from `build_command`.
        options: the user's.
        log: file that gets what the server prints.
        device: `cpu` or `cuda`.

    Attributes:
        base_url: address of the server, up to and including /v1.
    """

    def __init__(self, command: Sequence[str], options: VllmOptions, log: Path, device: str):
        self.command, self.options, self.log, self.device = list(command), options, log, device
        self.executable = find_executable(options.executable)
        self.process: subprocess.Popen[bytes] | None = None
        self.others: list[subprocess.Popen[bytes]] = []
        self.base_url = ""
        self.started_at = 0  # offset in the log

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            InputError: it ends, or is not ready in time; says why by its log.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, PORT_ATTEMPTS + 1):
            port = find_port()
            self.base_url = f"http://{HOST}:{port}/v1"
            self.launch(port)
            if self.wait():
                return
            is_taken = self.options.nodes == 1 and PORT_TAKEN.search(self.read_log())
            if attempt == PORT_ATTEMPTS or not is_taken:
                raise InputError(self.explain())
            logger.info("port %d was taken by another program in the meantime; trying another one", port)
            self.stop()

    def launch(self, port: int) -> None:
        """Start the processes."""
        self.started_at = self.log.stat().st_size if self.log.exists() else 0
        command = [self.executable, *self.command, "--host", HOST, "--port", str(port)]
        environment = build_environment(self.device)
        gpus = count_gpus(self.options.arguments, self.options.nodes)
        logger.info("starting vLLM (log: %s): %s", self.log, " ".join(command))
        with open(self.log, "ab") as log:
            streams: dict[str, Any] = {"env": environment, "stdout": log, "stderr": log}
            for words in list_other_nodes(command, self.options.nodes, gpus):
                self.others.append(supervisor.start(words, **streams))
            self.process = supervisor.start([*command, *list_arguments(self.options.nodes)], **streams)

    def wait(self) -> bool:
        """Wait until the server answers; return False if it has ended.

        Raises:
            InputError: it is not ready in time.
        """
        started = last_line = time.monotonic()
        while self.is_running():
            if is_healthy(self.base_url):
                self.check_version()
                logger.info("vLLM is ready after %.0f s", time.monotonic() - started)
                return True
            now = time.monotonic()
            if now - started > self.options.start_timeout:
                text = self.read_log().strip().splitlines()
                self.stop()
                raise InputError(
                    f"vLLM was not ready after {self.options.start_timeout:g} s (teacher.vllm.start_timeout); the last "
                    f"lines of its log {self.log}:\n" + "\n".join(f"  {cut(line, 300)}" for line in text[-5:])
                )
            if now - last_line > SECONDS_BETWEEN_LINES:
                last_line = now
                lines = self.read_log().strip().splitlines() or ["(nothing yet)"]
                logger.info("vLLM starts for %.0f s: %s", now - started, cut(lines[-1], 160))
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return False

    def check_version(self) -> None:
        """Log vLLM's version, and check that it is not older than the one that was tried.

        Raises:
            InputError: it is; options and replies may mean something else there.
        """
        with open_directly(self.base_url.removesuffix("/v1") + "/version") as response:
            version = str(json.load(response).get("version"))
        found = re.match(r"(\d+)\.(\d+)", version)
        if found and tuple(map(int, found.groups())) < OLDEST:
            self.stop()
            raise InputError(
                f"{self.executable}: expected vLLM {'.'.join(map(str, OLDEST))} or newer, found {version}; run `make "
                "setup-vllm`, or name another program in teacher.vllm.executable"
            )
        logger.info("vLLM %s", version)

    def is_running(self) -> bool:
        """Whether the server's processes have not ended, on all nodes."""
        return self.process is not None and all(one.poll() is None for one in (self.process, *self.others))

    def read_log(self) -> str:
        """Return what the server has printed since its start."""
        if not self.log.exists():
            return ""
        with open(self.log, "rb") as file:
            file.seek(self.started_at)
            return file.read().decode("utf-8", errors="replace")

    def explain(self) -> str:
        """Return why the server has ended, by its log."""
        lines = [line.strip() for line in self.read_log().splitlines() if line.strip()]
        errors = [line for line in lines if ERROR_LINE.search(line) and not WRAPPER.search(line)]
        # The first errors are the causes, in the processes that compute; later ones repeat them.
        shown = list(dict.fromkeys(errors))[:3] or lines[-5:]
        codes = [one.poll() for one in (self.process, *self.others) if one is not None]
        code = next((code for code in codes if code is not None), None)
        hint = ""
        if any(OUT_OF_MEMORY.search(line) for line in lines):
            hint = (
                "\nthe GPU's memory does not hold it: lower max_model_len or raise gpu_memory_utilization in "
                "teacher.vllm.arguments, quantize (`quantization: fp8`), or end other programs on the GPU"
            )
        ended = f"vLLM has ended with exit code {code}; its log {self.log} says:\n"
        return ended + "\n".join(f"  {cut(line, 300)}" for line in shown) + hint

    def stop(self) -> None:
        """Take the server down on all nodes and wait until all of its processes have ended."""
        processes = [one for one in (self.process, *self.others) if one is not None]
        for process in processes:
            if process.stdin:
                process.stdin.close()
        for process in processes:
            process.wait()
        self.process, self.others = None, []


def build_environment(device: str) -> dict[str, str]:
    """Return the environment of the server: this one's, without what belongs to this Python."""
    of_python = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    left_out = (*of_python, "VLLM_API_KEY", "VLLM_PORT")  # the job has no key, and chooses the port
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    if device == "cpu":  # for the connector
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    return {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"} | environment


def find_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def open_directly(address: str) -> Any:
    """Open an address of a server on this machine, without a proxy of the environment."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=5)


def is_healthy(base_url: str) -> bool:
    """Whether a server on this machine answers; a proxy of the environment is not asked."""
    try:
        with open_directly(base_url.removesuffix("/v1") + "/health") as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
