r"""Write the train and val splits in Alpaca format, with the dataset_info.json that LLaMA-Factory reads.

    python write_alpaca.py --data artifacts/distill_data/processed/qa --name qa \
        --out artifacts/distill_data/processed/qa

Several folders are concatenated, for a student of all categories.
"""

import argparse
import logging
from pathlib import Path

from distill.common.errors import run_script
from distill.export.llamafactory import SHARES, write_datasets
from distill.records.splits import read_split

logger = logging.getLogger(__name__)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FOLDER", help="folders with the splits")
    parser.add_argument("--name", required=True, help="prefix of the dataset names, NAME_train and NAME_val")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="output folder")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Write the datasets."""
    args = parse_args(argv)
    splits = {share: [record for folder in args.data for record in read_split(folder, share)] for share in SHARES}
    counts = write_datasets(args.name, splits, args.out)
    logger.info("%s: %d training and %d validation records", args.out, counts["train"], counts["val"])


if __name__ == "__main__":
    run_script(main)
