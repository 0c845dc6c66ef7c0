r"""Render the HTML page of a category's answers side by side: one searchable file that loads nothing else.

    python workflow/scripts/render_answers.py --category banks --page-records 200 \
        --predictions output/evaluation/*/banks.predictions.jsonl \
        --questions output/evaluation/*/banks.questions.jsonl --out output/report/answers/banks.html
"""

import argparse
import logging
from pathlib import Path

from distill.common.errors import InputError, run_script
from distill.common.options import add_options
from distill.evaluation.verdict_files import add_verdicts
from distill.report.answers_page import read_answers, render_page, write_page
from distill.report.options import PageOptions

logger = logging.getLogger(__name__)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--category", required=True)
    parser.add_argument(
        "--predictions",
        nargs="+",
        required=True,
        metavar="FILE",
        help=".../MODEL/CATEGORY.predictions.jsonl",
    )
    parser.add_argument("--questions", nargs="*", default=[], metavar="FILE", help=".../MODEL/CATEGORY.questions.jsonl")
    parser.add_argument("--verdicts", nargs="*", default=[], metavar="FILE", help=".../MODEL/CATEGORY.verdicts.jsonl")
    add_options(parser, PageOptions)
    parser.add_argument("--out", required=True, metavar="FILE", help="the page, .html")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Read the answers, render the page and write it."""
    args = parse_args(argv)
    tests = read_answers(args.predictions, ".predictions.jsonl")
    for path in args.verdicts:
        if (model := Path(path).absolute().parent.name) not in tests:
            raise InputError(f"{path}: expected verdicts on the answers of {', '.join(tests)}, found those on {model}")
        add_verdicts(tests[model], [path])
    questions = read_answers(args.questions, ".questions.jsonl")
    write_page(args.out, render_page(args.category, tests, questions, args.page_records))
    total, asked = (len(next(iter(found.values()), [])) for found in (tests, questions))
    logger.info(
        "%d fixed questions and %d of %d test prompts, %d models -> %s",
        asked,
        min(args.page_records, total),
        total,
        len(tests),
        args.out,
    )


if __name__ == "__main__":
    run_script(main)
