r"""Write the model card of an exported model: metadata for the Hugging Face hub, training, scores and usage.

    python workflow/scripts/write_model_card.py --name student_kd --category banks --variant nf4 \
        --training output/student_kd/banks/README.md --base-model Qwen/Qwen2.5-0.5B-Instruct \
        --teacher Qwen/Qwen2.5-7B-Instruct --metrics output/evaluation/{teacher,student_kd_nf4}/banks.metrics.json \
        --config-digest 0123 --out output/export/student_kd/banks/nf4/README.md
"""

import argparse
import logging
from pathlib import Path

from distill.common.errors import run_script
from distill.common.options import add_options
from distill.common.variants import VARIANTS, get_evaluated_name
from distill.evaluation.score_table import gather_scores
from distill.export.model_card import Exported, write_card
from distill.export.options import CardOptions

logger = logging.getLogger("write_model_card")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="name of the student")
    parser.add_argument("--category", required=True, help="category of its training records, or all")
    parser.add_argument("--variant", choices=tuple(VARIANTS), required=True)
    parser.add_argument(
        "--training", type=Path, required=True, metavar="FILE", help="README.md in the folder of the student"
    )
    parser.add_argument(
        "--metrics", nargs="+", required=True, metavar="FILE", help="scores, as MODEL/CATEGORY.metrics.json"
    )
    parser.add_argument("--base-model", help="the student before distillation, unless it consists of copied layers")
    parser.add_argument("--teacher", required=True, help="model of the teacher")
    add_options(parser, CardOptions)
    parser.add_argument("--config-digest", required=True, help="digest of the settings that determine the student")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="model card to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Read the scores and write the card."""
    args = parse_args(argv)
    evaluated = get_evaluated_name(args.name, args.variant)
    given = {field: getattr(args, field) for field in Exported._fields if field != "evaluated"}
    scores = gather_scores(args.metrics)
    write_card(Exported(evaluated=evaluated, **given), args.training, scores, args.out)
    logger.info(
        "%s: written with the scores of %s", args.out, ", ".join(dict.fromkeys(score.model for score in scores))
    )


if __name__ == "__main__":
    run_script(main)
