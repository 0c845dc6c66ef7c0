"""List the cached answers of all teachers and tokenized examples, or remove those that nothing uses.

    python workflow/scripts/cache.py list
    python workflow/scripts/cache.py prune --configfile config/config.yaml --directory DIR… [--yes]

Without --configfile, the project's own configurations (config/*.yaml) are used. If several working directories share a
cache, --directory has to name all of them. Answers are removed that no configuration uses, and tokenized examples of
records that have changed since. Do not prune during a run.
"""

import argparse
from pathlib import Path

import generate_answers
from distill.common.errors import run_script
from distill.plan.prune_cache import check_sharing, find_uses, list_cache, prune_cache
from distill.plan.prune_examples import describe_examples, prune_examples

CONFIG = Path(__file__).resolve().parents[2] / "config"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["list", "prune"], nargs="?", default="list", help="default: list")
    parser.add_argument(
        "--configfile",
        "--configfiles",
        type=Path,
        nargs="+",
        default=sorted(CONFIG.glob("*.yaml")),
        metavar="FILE",
        help="configurations whose answers are kept (default: config/*.yaml)",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="all working directories that share the cache (default: this one)",
    )
    parser.add_argument(
        "--yes", action="store_true", help="remove the answers; without it, only list what would be removed"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """List or prune the cache."""
    args = parse_args(argv)
    files = [path.absolute() for path in args.configfile]
    directories = args.directory or [Path()]
    uses = find_uses(files, directories, generate_answers.parse_args)
    if args.command == "list":
        print("\n".join(filter(None, [list_cache(uses), describe_examples(directories)])))
        return
    if examples := prune_examples(directories, args.yes):  # which needs no configuration
        print(examples)
    if not args.directory:
        check_sharing(uses, Path())
    print(prune_cache(uses, args.yes))


if __name__ == "__main__":
    run_script(main)
