"""The product's vLLM server, for benchmarks."""

import argparse
import gc
from pathlib import Path
from typing import Any

import torch

from distill.common.options import add_options
from distill.generation.engine import CONCURRENCY
from distill.generation.options import EngineOptions, VllmOptions
from distill.generation.sampling import Sampling
from distill.generation.transformers_engine import ModelSource
from distill.generation.vllm_engine import VllmSource


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the server to a command line."""
    add_options(parser, VllmOptions, "vllm_", only=["executable", "arguments", "start_timeout"])


def make_source(args: argparse.Namespace, model: str, sampling: Sampling, folder: Path) -> VllmSource:
    """Return the server of a model, which starts with the first request.

    Args:
        args: parsed command line, also with `dtype` and `device`.
        model: folder of the model.
        sampling: sampling settings.
        folder: where the server's log is written.
    """
    options = VllmOptions(args.vllm_executable, args.vllm_arguments, args.vllm_start_timeout)
    source = ModelSource(model, dtype=args.dtype, device=args.device)
    return VllmSource(source, sampling, options, folder / "vllm.log", CONCURRENCY["vllm"], EngineOptions().timeout)


def write_shape(model: Any, tokenizer: Any, folder: Path) -> str:
    """Write a model with random weights and its tokenizer for the server; its memory is free afterwards."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model.to("meta")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return str(folder)
