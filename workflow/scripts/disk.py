"""List what a working directory holds by step, what can be removed, and what making it again costs.

    python workflow/scripts/disk.py [--configfile FILE] [--directory DIR]

`jobs took` is the recorded time of the jobs that made the files. Nothing is removed: delete folders between runs as
docs/files.md says, and cached answers with `make cache ARGS=prune`.
"""

import argparse
from pathlib import Path

from distill.common.errors import run_script
from distill.plan.disk_usage import measure_usage, render_usage
from distill.plan.prune_cache import read_config

CONFIG = Path(__file__).resolve().parents[2] / "config/config.yaml"


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configfile", type=Path, default=CONFIG, metavar="FILE", help="default: config/config.yaml")
    parser.add_argument("--directory", type=Path, default=Path(), metavar="DIR", help="default: this directory")
    args = parser.parse_args(argv)
    directory = args.directory.resolve(strict=True)
    print(render_usage(measure_usage(read_config(args.configfile), directory), directory))


if __name__ == "__main__":
    run_script(main)
