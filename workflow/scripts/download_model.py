"""Download a model into a folder: the files that it is loaded from, checked against the hub's checksums.

    python download_model.py --source hf:Qwen/Qwen2.5-7B-Instruct --out models/hf/Qwen/Qwen2.5-7B-Instruct

A download that was interrupted goes on from the bytes that are there. HF_TOKEN and MODELSCOPE_API_TOKEN hold tokens,
HF_ENDPOINT and MODELSCOPE_ENDPOINT name mirrors.
"""

import argparse
import logging
import os
import signal
from pathlib import Path

from distill.common.arguments import count
from distill.common.errors import run_script
from distill.models.download import download
from distill.models.hub_clients import open_hub


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="hf:OWNER/NAME or modelscope:OWNER/NAME, with @REVISION")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--workers", type=count, default=8, help="files at a time")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Download."""
    args = parse_args(argv)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it names every request
    download(args.source, open_hub(args.source), args.out, args.workers)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C waits for no file: what is there is kept
    os.environ.setdefault("TQDM_DISABLE", "1")  # ModelScope's client draws bars, into a log too
    run_script(main)
