"""Options of the engine that generates answers."""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distill.common.options import COUNT, add_options, list_options, option
from distill.generation.engine import ENGINES

COMPARED_TOP = 20  # most likely tokens that hidden states are compared with; vLLM allows as many by default
# Arguments that the job decides itself, by their names on vLLM's command line.
OWN_ARGUMENTS = (
    "model", "host", "port", "served_model_name", "dtype", "enable_lora", "lora_modules", "max_lora_rank", "headless",
    "max_logprobs", "generation_config", "speculative_config", "kv_transfer_config", "logprobs_mode", "nnodes",
    "node_rank", "master_addr", "master_port", "api_key", "uds", "config", "data_parallel_size", "tokenizer", "task",
    "runner",
)  # fmt: skip
# Arguments that decide where and how fast vLLM computes, but not what.
RUN_ARGUMENTS = (
    "gpu_memory_utilization", "tensor_parallel_size", "pipeline_parallel_size", "max_num_seqs", "enforce_eager",
    "max_num_batched_tokens", "swap_space", "cpu_offload_gb", "distributed_executor_backend",
    "block_size", "enable_prefix_caching", "enable_chunked_prefill", "max_loras", "max_cpu_loras", "download_dir",
    "disable_log_stats", "kv_cache_memory_bytes", "disable_custom_all_reduce",
    "max_parallel_loading_workers",
)  # fmt: skip


@dataclass(frozen=True)
class EngineOptions:
    """What generates the answers, and how a server is reached."""

    engine: str = option(
        "Engine that generates the answers.",
        "transformers",
        choices=ENGINES,
        when="`vllm` where vLLM is installed, which is fastest on a GPU. `openai` if vLLM, SGLang, llama.cpp or "
        "`transformers serve` already serves the model.",
    )
    base_url: str | None = option(
        "Address of the server for engine `openai`, up to and including `/v1`.",
        None,
        minLength=1,
        changes_result=False,
        when="Required with `openai`, for example `http://localhost:8000/v1`.",
    )
    api_key_env: str = option(
        "Environment variable that holds the server's API key. The key itself is never written anywhere.",
        "OPENAI_API_KEY",
        pattern="^[A-Za-z_][A-Za-z0-9_]*$",
        is_secret=True,  # it may be the key itself, by mistake
        changes_result=False,
        when="Your key is in another variable. A server without keys needs none.",
    )
    tokenizer: str | None = option(
        "For engine `openai`: hub id or local folder with the tokenizer of the served model. With it, a server that "
        "gives `prompt_logprobs`, as vLLM does, also gives likelihoods and the signal `topk`.",
        None,
        minLength=1,
        when="The teacher's perplexity is wanted, or students learn its distribution.",
    )
    concurrency: int | Literal["auto"] = option(
        "Number of requests that each job keeps open at the server; `auto` is 16 with `openai` and 256 with `vllm`.",
        "auto",
        **COUNT,
        changes_result=False,
        when="Higher for a server with large batches, lower for one that is shared.",
    )
    timeout: float = option(
        "Maximum time to wait for one answer from the server, in seconds.",
        600,
        exclusiveMinimum=0,
        changes_result=False,
        when="Longer for long answers from a slow server.",
    )
    request_retries: int = option(
        "Number of retries after 408, 409, 429, 5xx, a time-out or a lost connection, and after a response with status "
        "200 that has such an error in its body or has no text.",
        8,
        minimum=0,
        changes_result=False,
        when="Higher if the server may be away for more than half a minute.",
    )


@dataclass(frozen=True)
class VllmOptions:
    """The vLLM server that jobs start with engine `vllm`."""

    executable: str | None = option(
        "The program `vllm`. By default it is looked for on PATH, then in `.venv-vllm`, where `make setup-vllm` "
        "installs it.",
        None,
        minLength=1,
        changes_result=False,
        when="It is installed elsewhere.",
    )
    arguments: dict[str, str | bool | int | float] = option(
        "Options of `vllm serve` by name, such as `{tensor_parallel_size: 2, max_model_len: 4096}`; a structured value "
        "is JSON text.",
        {},
        when="The model needs several GPUs, less memory (`gpu_memory_utilization`, `quantization: fp8`) or a shorter "
        "context.",
    )
    start_timeout: float = option(
        "Maximum time until the server is ready, in seconds.",
        1800,
        exclusiveMinimum=0,
        changes_result=False,
        when="Longer for weights that are read over a slow network.",
    )
    nodes: int = option(
        "Nodes of the Slurm cluster that serve the model together; `tensor_parallel_size` counts the GPUs of all.",
        1,
        **COUNT,
        changes_result=False,
        when="The model does not fit one node, such as 72B in 16 bits on a DGX Spark.",
    )
    share: bool = option(
        "Start one server for all categories of a run instead of one per job; only on one machine (not with Slurm).",
        False,
        changes_result=False,
        when="Loading the model takes long compared with the answers of a category.",
    )


def find_longer_name(name: str) -> str | None:
    """Return the option that a name abbreviates, since vLLM's command line may accept it; None for a whole name."""
    known = (*OWN_ARGUMENTS, *RUN_ARGUMENTS, "max_model_len", "quantization")
    short = name.removeprefix("no_")
    return None if short in known else next((one for one in known if one.startswith(short)), None)


def get_result_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of vLLM that decide what it computes.

    `max_model_len` is one of them: it cuts answers.
    """
    return {name: value for name, value in sorted(arguments.items()) if name not in RUN_ARGUMENTS}


def add_engine_options(parser: argparse.ArgumentParser, engines: Iterable[str] | None = None) -> None:
    """Add the options of engines to a command line.

    Args:
        parser: the command line.
        engines: names of the engines that it allows; all by default.
    """
    add_options(parser, EngineOptions, only=None if engines is None else [*list_options(EngineOptions)][1:])
    if engines is not None:
        parser.add_argument("--engine", choices=list(engines), default="transformers", help="Engine of the model.")
    add_options(parser.add_argument_group("vLLM server"), VllmOptions, "vllm_")
    parser.add_argument("--vllm-server", type=Path, metavar="FILE", help="File of serve_teacher.py: use its server.")
