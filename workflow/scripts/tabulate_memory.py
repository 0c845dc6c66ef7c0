r"""Gather the memory that jobs used, and the memory plan, into memory.csv.

Columns: stage,category,used_mib,used_reserved_mib,planned_mib,planned_reserved_mib,device,fits. Without a plan, its
cells are empty.

    python workflow/scripts/tabulate_memory.py \
        --training output/*/*/training_log.jsonl --plan artifacts/memory_plan.json --out output/report/memory.csv
"""

import argparse
import logging
from pathlib import Path

from distill.common.errors import run_script
from distill.report.memory_table import list_rows, write_memory

logger = logging.getLogger(__name__)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", nargs="+", type=Path, default=[], metavar="FILE", help="Statistics of answers.")
    parser.add_argument("--signals", nargs="+", type=Path, default=[], metavar="FILE", help="Statistics of signals.")
    parser.add_argument("--training", nargs="+", type=Path, default=[], metavar="FILE", help="Logs of trainings.")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="Memory plan of `make plan`.")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="memory.csv")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Write the table."""
    args = parse_args(argv)
    files = {"generate_answers": args.answers, "compute_signal": args.signals, "train_student": args.training}
    rows = write_memory(args.out, list_rows(files, args.plan))
    logger.info("wrote %d rows -> %s", rows, args.out)


if __name__ == "__main__":
    run_script(main)
