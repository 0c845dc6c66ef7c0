"""Write the model card of an exported folder: metadata for the Hugging Face hub, training, scores, use.

    python workflow/scripts/write_model_card.py --name student_kd --category banks --variant nf4 \
        --training output/student_kd/banks/README.md --base-model Qwen/Qwen2.5-0.5B-Instruct \
        --teacher Qwen/Qwen2.5-7B-Instruct --metrics output/evaluation/{teacher,student_kd_nf4}/banks.metrics.json \
        --config-digest 0123 --out output/export/student_kd/banks/nf4/README.md
"""

import argparse
import logging
from pathlib import Path

from distill.common.errors import run_script
from distill.common.names import FULL, VARIANTS
from distill.common.options import add_options
from distill.evaluation.score_table import gather_scores
from distill.export.model_card import Exported, write_card
from distill.export.options import CardOptions

logger = logging.getLogger("write_model_card")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the student")
    parser.add_argument("--category", required=True, help="that it was trained on; all for all of them")
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument(
        "--training", type=Path, required=True, metavar="FILE", help="README.md of the student's folder"
    )
    parser.add_argument("--metrics", nargs="+", required=True, metavar="FILE", help="MODEL/CATEGORY.metrics.json")
    parser.add_argument("--base-model", help="the student before distillation, where it has a name")
    parser.add_argument("--teacher", required=True)
    add_options(parser, CardOptions)
    parser.add_argument("--config-digest", required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Read and write."""
    args = parse_args(argv)
    evaluated = args.name if args.variant == FULL else f"{args.name}_{args.variant}"
    given = {field: getattr(args, field) for field in Exported._fields if field != "evaluated"}
    scores = gather_scores(args.metrics)
    write_card(Exported(evaluated=evaluated, **given), args.training, scores, args.out)
    logger.info("%s: scores of %s", args.out, ", ".join(dict.fromkeys(score.model for score in scores)))


if __name__ == "__main__":
    run_script(main)
