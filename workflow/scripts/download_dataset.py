"""Download the files of one split of a dataset, and check them against the hub's checksums.

    python workflow/scripts/download_dataset.py --source hf:datasets/openai/gsm8k@main:socratic/train \\
        --out datasets/hf/openai/gsm8k@main/socratic/train

An interrupted download resumes. HF_TOKEN sets the access token, HF_ENDPOINT a mirror.
"""

import argparse
import logging
import signal
from pathlib import Path

from distill.common.arguments import count
from distill.common.errors import InputError, run_script
from distill.models.download_dataset import download_dataset
from distill.models.hub_clients import open_dataset_hub
from distill.records.dataset_names import FORM, parse_dataset


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help=FORM)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to download to")
    parser.add_argument("--workers", type=count, default=8, help="number of files to download at a time")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Download the files of a split."""
    args = parse_args(argv)
    dataset = parse_dataset(args.source)
    if not dataset:
        raise InputError(f"{args.source}: expected {FORM}")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # at INFO it logs every request
    download_dataset(args.source, dataset, open_dataset_hub(dataset), args.out, args.workers)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C stops at once; finished and partial files are kept
    run_script(main)
