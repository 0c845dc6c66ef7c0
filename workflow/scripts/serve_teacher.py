"""Serve a teacher by vLLM for all jobs of a run on this machine, with the adapters of all categories.

    python serve_teacher.py --model Qwen/Qwen2.5-7B-Instruct --adapters checkpoints/banks checkpoints/funds \
        --out artifacts/vllm/answers.json

Writes the file at once, since Snakemake waits for it only for some seconds, and again when the server is ready. Serves
until a signal, or until Snakemake has ended.
"""

import argparse
import logging
import os
import shutil
import signal
import time
from pathlib import Path
from types import FrameType

import psutil

from distill.common.errors import InputError, run_script
from distill.common.files import write_json
from distill.common.gpu_claims import claim_gpus
from distill.common.options import add_options, read_options
from distill.generation.engine import count_gpus
from distill.generation.options import VllmOptions
from distill.models.options import DeviceOptions, ModelOptions

logger = logging.getLogger("serve_teacher")

LOOK_SECONDS = 0.5


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, ModelOptions, only=["model", "dtype"])
    add_options(parser, DeviceOptions)
    parser.add_argument("--adapters", nargs="+", default=[], metavar="FOLDER", help="LoRA checkpoints to serve")
    parser.add_argument("--hidden-states", action=argparse.BooleanOptionalAction, default=False,
                        help="also extract the states behind the last layer")  # fmt: skip
    parser.add_argument("--top-logprobs", type=int, default=1, help="most likely tokens that a request may ask for")
    add_options(parser.add_argument_group("vLLM server"), VllmOptions, "vllm_")
    parser.add_argument("--out", type=Path, required=True, help="output: where the server answers (JSON)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Start the server, write the file, and wait."""
    args = parse_args(argv)
    signals: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    parents = psutil.Process().parents()[:2]  # a shell, and Snakemake, which may end alone
    write_json(args.out, {"pid": os.getpid()})
    claim_gpus(args.device, count_gpus(args.vllm_arguments, args.vllm_nodes))
    from distill.generation.shared_server import describe_server, open_server  # imports torch

    options = read_options(args, VllmOptions, "vllm_")
    folder = args.out.absolute().with_suffix(".states")
    shutil.rmtree(folder, ignore_errors=True)  # of a server that was killed
    folder.mkdir(parents=True)
    try:
        with open_server(args, options, folder) as server:
            write_json(args.out, describe_server(args, options, server, str(folder)))
            while server.is_running() and all(one.is_running() for one in parents):
                time.sleep(LOOK_SECONDS)
            if not server.is_running():
                raise InputError(server.explain())
    except KeyboardInterrupt:
        logger.info("stopped by signal %d", signals[-1] if signals else signal.SIGINT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    run_script(main)
