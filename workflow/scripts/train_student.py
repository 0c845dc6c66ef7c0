"""Train a student on a category's teacher answers, or on those of several categories.

    python train_student.py --data processed/banks --model Qwen/Qwen1.5-1.8B-Chat --method forward_kl \
        --teacher-model Qwen/Qwen2.5-7B-Instruct --out output/student_kd/banks --name student_kd --category banks

A run that was stopped at any instant goes on from its last checkpoint under --checkpoints; SIGTERM and SIGUSR1 save one
first. With several GPUs: `torchrun --nproc-per-node 4 -- train_student.py …`; an optimizer step has the same records on
any number of them, and --strategy fsdp shares out the weights.
"""

import argparse
from pathlib import Path

from distill.common.errors import run_script
from distill.records.splits import read_split


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `students.*.train`."""
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--gradient-accumulation-steps", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--lr-scheduler", default="cosine")
    parser.add_argument("--warmup-ratio", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    parser.add_argument("--optimizer", default="adamw_torch_fused")
    parser.add_argument("--precision", choices=["fp32", "fp16", "bf16"], default="bf16")
    parser.add_argument("--gradient-checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--group-by-length", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--best-checkpoint", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--early-stopping-patience", type=int, help="validations without a smaller loss")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--strategy", choices=["ddp", "fsdp"], default="ddp")
    parser.add_argument("--fsdp-offload", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--logging-steps", type=int, default=10)
    parser.add_argument("--eval-steps", type=int, help="without it: after each epoch")
    parser.add_argument("--save-steps", type=int, default=500)
    parser.add_argument("--save-total-limit", type=int, default=3)


def add_teacher_arguments(parser: argparse.ArgumentParser) -> None:
    """The teacher, where its distribution comes from, and how students sample under its eyes."""
    parser.add_argument("--teacher-model")
    parser.add_argument(
        "--teacher-adapter", nargs="+", metavar="ADAPTER", help="one, or with a cached signal one a --data"
    )
    parser.add_argument("--teacher-dtype", default="bfloat16")
    parser.add_argument("--teacher-quantization", choices=["none", "int8", "nf4"], default="none")
    parser.add_argument("--signal", choices=["online", "hidden", "topk"], default="online")
    parser.add_argument("--top-k", type=int, default=64, help="of signal topk")
    parser.add_argument(
        "--signal-folders", nargs="+", metavar="FOLDER", help="of compute_signal.py, one for each --data"
    )
    parser.add_argument("--on-policy-fraction", type=float, default=0.0, help="steps on the student's own samples")
    parser.add_argument("--on-policy-steps", type=int, default=8, help="steps that answers are sampled for at once")
    parser.add_argument("--on-policy-max-new-tokens", type=int, default=256)
    parser.add_argument("--on-policy-temperature", type=float, default=1.0)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FOLDER", help="with the splits")
    parser.add_argument("--pool-balance", choices=["proportional", "balanced"], default="proportional")
    parser.add_argument("--out", type=Path, required=True, help="the student's folder")
    parser.add_argument("--name", required=True)
    parser.add_argument("--category", required=True)
    parser.add_argument("--checkpoints", type=Path, default=Path("artifacts/checkpoints"))
    parser.add_argument("--model", required=True, help="the student before distillation: hub id or local folder")
    parser.add_argument("--method", choices=["seqkd", "forward_kl", "reverse_kl", "jsd", "tvd"], required=True)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--alpha", type=float, default=0.5, help="weight of the divergence")
    parser.add_argument("--beta", type=float, default=0.5, help="weight of the teacher in jsd's mixture")
    add_teacher_arguments(parser)
    parser.add_argument("--lora-rank", type=int, help="without it all weights are trained")
    parser.add_argument("--lora-alpha", type=float, default=128)
    parser.add_argument("--lora-dropout", type=float, default=0.05)
    parser.add_argument("--lora-target", nargs="+", default=["all"])
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add_training_arguments(parser)
    args = parser.parse_args(argv)
    if args.method != "seqkd" and not args.teacher_model:
        parser.error(f"--method {args.method} needs --teacher-model")
    if args.method != "seqkd" and args.signal != "online" and len(args.signal_folders or []) != len(args.data):
        parser.error(f"--signal {args.signal} needs --signal-folders, one for each --data")
    if len(args.teacher_adapter or []) not in ({0, 1} if args.signal == "online" else {0, 1, len(args.data)}):
        parser.error("--teacher-adapter: expected one, or one for each --data with --signal hidden or topk")
    if args.on_policy_fraction and args.strategy == "fsdp":
        parser.error("--on-policy-fraction needs --strategy ddp")
    if args.on_policy_fraction and (args.method == "seqkd" or args.signal != "online"):
        parser.error("--on-policy-fraction needs --signal online, and a --method other than seqkd")
    return args


def main(argv: list[str] | None = None) -> None:
    """Train and write."""
    args = parse_args(argv)
    train, val = ([read_split(folder, name) for folder in args.data] for name in ("train", "val"))
    from distill.student.train_student import train_student  # torch: not before bad input ends it

    train_student(vars(args), train, val)


if __name__ == "__main__":
    run_script(main)
