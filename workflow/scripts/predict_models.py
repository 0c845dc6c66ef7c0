"""Answer with several models of a category, one after the other, in one process.

    python predict_models.py --predict "--model output/student_kd/banks --test … --out …" \
        --ask "--model output/student_kd/banks --questions … --out …" --category banks --device cpu

Each `--predict` is a call of predict_answers.py with these options, and each `--ask` one of answer_questions.py. All
other options are those of every call. The files are the same as from processes of their own.
"""

import argparse
import gc
import logging
import shlex

import answer_questions
import predict_answers
from distill.common.errors import InputError, run_script

logger = logging.getLogger("predict_models")


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; return the calls and the options of every call."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--predict", action="append", default=[], metavar="OPTIONS", help="of predict_answers.py")
    parser.add_argument("--ask", action="append", default=[], metavar="OPTIONS", help="of answer_questions.py")
    return parser.parse_known_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the calls in turn; none holds the memory of another's model."""
    import torch  # after the environment is set

    args, common = parse_args(argv)
    calls = [(predict_answers.main, options) for options in args.predict]
    calls += [(answer_questions.main, options) for options in args.ask]
    problems = []
    for answer, options in calls:
        logger.info("answering with %s", options)
        try:
            answer([*shlex.split(options), *common])
        except InputError as error:  # the other models' answers are kept, so that the next run need not repeat them
            problems.append(str(error))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if problems:
        raise InputError("\n".join(problems))


if __name__ == "__main__":
    run_script(main)
