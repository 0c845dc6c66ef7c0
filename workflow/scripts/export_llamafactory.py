"""Write a student's training for LLaMA-Factory: the YAML of `llamafactory-cli train`.

    python export_llamafactory.py --template qwen --data artifacts/distill_data/processed/banks --name student \
        --category banks --out output/llamafactory/student/banks --model Qwen/Qwen2.5-7B-Instruct --method seqkd

Takes the options of train_student.py; --data holds what write_alpaca.py has written. The targets and the settings are
the same; the divergence from the teacher is not part of it, since LLaMA-Factory trains on the answers alone.
"""

import argparse

import train_student
from distill.common.errors import run_script
from distill.export.llamafactory import export_training


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, argparse.Namespace]:
    """The command line: what is of the export, and what is of the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", default="qwen", help="LLaMA-Factory's name of the model's chat template")
    args, rest = parser.parse_known_args(argv)
    return args, train_student.parse_args(rest)


def main(argv: list[str] | None = None) -> None:
    """Write."""
    args, training = parse_args(argv)
    (data,) = training.data
    export_training(vars(training), data, training.out, args.template)


if __name__ == "__main__":
    run_script(main)
