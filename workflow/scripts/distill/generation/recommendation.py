"""A line of the log that recommends vLLM where it is installed and a GPU answers with transformers."""

import argparse
import logging

from distill.common.errors import InputError
from distill.generation.engine import ENGINES
from distill.generation.vllm_server import find_executable

logger = logging.getLogger(__name__)


def recommend_vllm(args: argparse.Namespace) -> None:
    """Log that vLLM could answer, if it is installed, has a GPU and serves the model as it is configured.

    Args:
        args: parsed command line with the options of engines and models. GPUs must have been claimed.
    """
    is_possible = ENGINES[args.engine].loads_weights and not ENGINES[args.engine].starts_vllm
    if not is_possible or args.device == "cpu" or args.quantization != "none":
        return
    try:
        executable = find_executable(args.vllm_executable)
    except InputError:
        return
    import torch

    if torch.cuda.is_available():
        logger.info(
            "vLLM is installed (%s) and is usually faster on a GPU than engine %s: consider teacher.engine: vllm "
            "before many answers are generated, since answers of another engine are not reused (docs/vllm.md)",
            executable,
            args.engine,
        )
