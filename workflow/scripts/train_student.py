"""Train a student on a category's teacher answers, or on those of several categories.

    python train_student.py --data processed/banks --model Qwen/Qwen1.5-1.8B-Chat --method forward_kl \
        --teacher-model Qwen/Qwen2.5-7B-Instruct --out output/student_kd/banks --name student_kd --category banks

An interrupted run resumes from its last checkpoint under --checkpoints; SIGTERM and SIGUSR1 save one first. To train on
several GPUs: `torchrun --nproc-per-node 4 -- train_student.py …`. An optimizer step has the same records on any number
of GPUs; --strategy fsdp shards the weights.
"""

import argparse

from distill.common.errors import run_script
from distill.common.gpu_claims import claim_gpus
from distill.common.trackers import check_installed
from distill.records.split_reader import SplitReader
from distill.student.student_run import add_run_options, check_run, read_run


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_options(parser)
    args = parser.parse_args(argv)
    if problem := check_run(args):
        parser.error(problem)
    return args


def main(argv: list[str] | None = None) -> None:
    """Train and write the student."""
    run = read_run(parse_args(argv))
    check_installed(run.trackers.report_to)
    train, val = ([SplitReader(folder, name) for folder in run.data] for name in ("train", "val"))
    claim_gpus(run.device)
    from distill.student.train_student import train_student  # imports torch: only after bad input is rejected

    train_student(run, train, val)


if __name__ == "__main__":
    run_script(main)
