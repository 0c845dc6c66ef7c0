"""Write a student's training for LLaMA-Factory: data, dataset_info.json and the YAML of `llamafactory-cli train`.

    python export_llamafactory.py --template qwen --data processed/banks --out output/llamafactory/student/banks \
        --name student --category banks --model Qwen/Qwen2.5-7B-Instruct --method seqkd

Takes the options of train_student.py. The targets and the settings are the same; the divergence from the teacher is not
part of it, since LLaMA-Factory trains on the answers alone.
"""

import argparse
import logging

import train_student
from distill.errors import run_script
from distill.llamafactory import export_training
from distill.splits import read_split

logger = logging.getLogger(__name__)


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, argparse.Namespace]:
    """The command line: what is of the export, and what is of the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", default="qwen", help="LLaMA-Factory's name of the model's chat template")
    args, rest = parser.parse_known_args(argv)
    return args, train_student.parse_args(rest)


def main(argv: list[str] | None = None) -> None:
    """Write."""
    args, training = parse_args(argv)
    splits = {name: [r for folder in training.data for r in read_split(folder, name)] for name in ("train", "val")}
    counts = export_training(vars(training), splits, training.out, args.template)
    logger.info("%s: %d training and %d validation records", training.out, counts["train"], counts["val"])


if __name__ == "__main__":
    run_script(main)
