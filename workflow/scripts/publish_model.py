"""Upload an exported model with its card to the Hugging Face hub.

    HF_TOKEN=… python publish_model.py --model output/export/student_kd/banks/full --repository OWNER/student_kd-banks \
        --out output/export/student_kd/banks/full.published.json

With --dry-run it only lists what would be uploaded. HF_ENDPOINT sets another hub.
"""

import argparse
import logging
from pathlib import Path

from distill.common.errors import run_script
from distill.common.files import write_json
from distill.export.publish import describe_uploads, push

logger = logging.getLogger("publish_model")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="folder of the exported model")
    parser.add_argument("--repository", required=True, metavar="OWNER/NAME")
    parser.add_argument("--private", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--dry-run", action="store_true", help="only list what would be uploaded")
    parser.add_argument("--out", type=Path, help="JSON file for a record of the upload")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Upload the model."""
    args = parse_args(argv)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # at INFO it logs every request
    if args.dry_run:
        print("\n".join(describe_uploads(args.model, args.repository, args.private)))
        return
    found = push(args.model, args.repository, args.private)
    if args.out:
        write_json(args.out, found)
    logger.info("%s is at %s, commit %s", args.model, found["url"], found["commit"])


if __name__ == "__main__":
    run_script(main)
