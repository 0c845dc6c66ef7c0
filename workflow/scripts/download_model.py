"""Download the files needed to load a model, and check them against the hub's checksums.

    python workflow/scripts/download_model.py --source hf:Qwen/Qwen2.5-7B-Instruct \\
        --out models/hf/Qwen/Qwen2.5-7B-Instruct

An interrupted download resumes. HF_TOKEN and MODELSCOPE_API_TOKEN set access tokens, HF_ENDPOINT and
MODELSCOPE_ENDPOINT set mirrors.
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
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source", required=True, help="hf:OWNER/NAME or modelscope:OWNER/NAME, optionally with @REVISION"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to download to")
    parser.add_argument("--workers", type=count, default=8, help="number of files to download at a time")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Download the model."""
    args = parse_args(argv)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # at INFO it logs every request
    download(args.source, open_hub(args.source), args.out, args.workers)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C stops at once; finished and partial files are kept
    os.environ.setdefault("TQDM_DISABLE", "1")  # ModelScope's client draws progress bars even in log files
    run_script(main)
