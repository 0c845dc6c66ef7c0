r"""Export a student's training to LLaMA-Factory, as the YAML file of `llamafactory-cli train`.

    python export_llamafactory.py --template qwen --data artifacts/distill_data/processed/banks --name student \
        --category banks --out output/llamafactory/student/banks --model Qwen/Qwen2.5-7B-Instruct --method seqkd

It takes the options of train_student.py; --data is the output folder of write_alpaca.py. Records and settings are the
same, except that LLaMA-Factory trains on the answers only: it has no divergence from the teacher.
"""

import argparse

from distill.common.errors import run_script
from distill.export.llamafactory import export_training
from distill.student.student_run import add_run_options, read_run


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", default="qwen", help="LLaMA-Factory's name of the model's chat template")
    add_run_options(parser)
    args = parser.parse_args(argv)
    if len(args.data) > 1:
        parser.error(f"--data: expected one folder from write_alpaca.py, found {len(args.data)}")
    return args


def main(argv: list[str] | None = None) -> None:
    """Write the YAML file."""
    args = parse_args(argv)
    export_training(read_run(args), args.data[0], args.template)


if __name__ == "__main__":
    run_script(main)
