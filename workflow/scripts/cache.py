"""Show whose answers the cache holds, or remove those that no configuration uses.

    python workflow/scripts/cache.py list
    python workflow/scripts/cache.py prune --configfile config/config.yaml --directory DIR… [--yes]

Without --configfile all of the project's own count (config/*.yaml). A cache that several working directories share is
pruned only where --directory names them. Not while a run is going on.
"""

import argparse
from pathlib import Path

import generate_answers
from distill.common.errors import run_script
from distill.plan.prune_cache import check_sharing, find_uses, list_cache, prune_cache

CONFIG = Path(__file__).resolve().parents[2] / "config"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["list", "prune"], nargs="?", default="list")
    parser.add_argument("--configfile", "--configfiles", type=Path, nargs="+", default=sorted(CONFIG.glob("*.yaml")))
    parser.add_argument(
        "--directory", type=Path, nargs="+", help="all working directories that share the cache, as of snakemake"
    )
    parser.add_argument("--yes", action="store_true", help="remove, instead of saying what would be")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """List or prune."""
    args = parse_args(argv)
    files = [path.absolute() for path in args.configfile]
    uses = find_uses(files, args.directory or [Path()], generate_answers.parse_args)
    if args.command == "list":
        print(list_cache(uses))
        return
    if not args.directory:
        check_sharing(uses, Path())
    print(prune_cache(uses, args.yes))


if __name__ == "__main__":
    run_script(main)
