"""Measure what a student with another tokenizer learns from the teacher's distribution, beyond its answers.

    python benchmarks/cross_tokenizer.py --model SMOLLM2_FOLDER --out benchmarks/results/cross_tokenizer.json

The teacher answers a fixed set of questions. A small student with random weights and a tokenizer of its own, trained on
the training split, learns from the same answers in the same number of steps: by seqkd, and across tokenizers from the
teacher's cached hidden states and its top 64 tokens. Each is trained with several seeds, which decide the initial
weights and the order of the records. With --student, a pretrained chat model is the student, and seeds decide the order
only. If TRL is installed, the hybrid loss of its GOLDTrainer trains the same students, with the teacher in memory. On
held-out answers, bits per byte of their text are measured, which tokenizers do not change. Prints a Markdown table with
the seconds of a training, its start included; --out writes all results as JSON.
"""

import argparse
import datetime
import json
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from machine import describe_machine
from students import Rows, prepare_answers, read_rows, run, run_benchmark, signal_options
from transformers import Qwen2Config, Qwen2ForCausalLM

from distill.common.errors import run_script
from distill.demo.tokenizer import train_tokenizer
from distill.evaluation.formulas import bits_per_byte
from distill.models.completions import decoder_and_head, score_rows
from distill.models.examples import encode_examples
from distill.models.load import load_chat, load_model
from distill.records.splits import read_split

TOP_K = 64
SEQKD = "seqkd"
GOLD = "TRL GOLD"
STUDENTS: dict[str, dict[str, Any]] = {
    SEQKD: {"method": "seqkd"},
    "forward_kl hidden": {"method": "forward_kl", "signal": "hidden"},
    f"forward_kl topk {TOP_K}": {"method": "forward_kl", "signal": "topk"},
} | ({GOLD: {}} if find_spec("trl") else {})


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """Make answers, splits, the cached signals, and the initial student of each seed."""
    prepare_answers(args, folder)
    computed = signal_options(args, folder)
    run("compute_signal", *computed, "--kind", "hidden", "--out", folder / "hidden")
    top = ["--kind", "topk", "--top-k", TOP_K, "--temperatures", args.temperature]
    run("compute_signal", *computed, *top, "--out", folder / "topk")
    if not args.student:
        records = read_split(folder / "data", "train")
        tokenizer = train_tokenizer((part["content"] for one in records for part in one["messages"]), args.tokens)
        for seed in range(args.seeds):
            write_student(initial_student(seed, args, folder), tokenizer, args, seed)


def initial_student(seed: int, args: argparse.Namespace, folder: Path) -> Path:
    """Folder of the student before training."""
    return args.student or folder / f"initial_{seed}"


def write_student(folder: Path, tokenizer: Any, args: argparse.Namespace, seed: int) -> None:
    """Write a student with random weights."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=args.width,
        intermediate_size=3 * args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 64,
        num_key_value_heads=args.width // 64,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(name: str, seed: int, args: argparse.Namespace, folder: Path) -> tuple[Path, float]:
    """Train a student and return its folder and the seconds that it took."""
    out = folder / f"{name.replace(' ', '_')}_{seed}"
    began = time.monotonic()
    (train_gold if name == GOLD else train_student)(name, seed, args, folder, out)
    return out, time.monotonic() - began


def train_gold(name: str, seed: int, args: argparse.Namespace, folder: Path, out: Path) -> None:
    """Train a student with TRL."""
    options = ["--data", folder / "data", "--out", out, "--teacher", args.model]
    options += ["--student", initial_student(seed, args, folder), "--epochs", args.epochs]
    options += ["--batch-size", args.batch_size, "--learning-rate", args.learning_rate, "--precision", args.precision]
    options += ["--temperature", args.temperature, "--alpha", args.alpha, "--seed", seed, "--device", args.device]
    run(Path(__file__).with_name("trl_gold.py"), *options)


def train_student(name: str, seed: int, args: argparse.Namespace, folder: Path, out: Path) -> None:
    """Train a student with the workflow's script."""
    student = STUDENTS[name]
    options = ["--data", folder / "data", "--out", out, "--checkpoints", folder / "checkpoints"]
    options += ["--examples", folder / "examples"]
    options += ["--name", "student", "--category", "questions", "--model", initial_student(seed, args, folder)]
    options += ["--method", student["method"], "--device", args.device, "--precision", args.precision]
    options += ["--epochs", args.epochs, "--batch-size", args.batch_size, "--gradient-accumulation-steps", 1]
    options += ["--learning-rate", args.learning_rate, "--no-gradient-checkpointing", "--logging-steps", 20]
    options += ["--seed", seed]
    if "signal" in student:
        options += ["--teacher-model", args.model, "--teacher-dtype", "float32", "--signal", student["signal"]]
        options += ["--signal-folders", folder / student["signal"], "--top-k", TOP_K, "--cross-tokenizer"]
        options += ["--temperature", args.temperature, "--alpha", args.alpha]
    run("train_student", *options)


@torch.inference_mode()
def score(folder: Path, records: Rows, device: torch.device) -> float:
    """Return a model's bits per byte of the held-out answers, as the metric of that name computes them."""
    model = load_model(str(folder), device, torch.float32, for_generation=False)
    _, head = decoder_and_head(model)
    examples = encode_examples(records, load_chat(str(folder)), None, 4096)
    targets = [torch.tensor(one["completion"], device=device) for one in examples]
    found = zip(examples, targets, strict=True)
    nll = np.array([score_rows(read_rows(model, one), head, target)[0].double().sum().item() for one, target in found])
    lengths = np.array([len(one["messages"][2]["content"].encode()) for one in records], dtype=float)
    return float(bits_per_byte(np.ones((1, len(records))), nll=nll, lengths=lengths)[0])


def summarize(scores: list[float], others: list[float] | None) -> dict[str, Any]:
    """Return the bits per byte of each seed, and mean and standard deviation of the differences to other students."""
    found: dict[str, Any] = {"bits_per_byte": [round(one, 4) for one in scores], "mean": round(mean(scores), 4)}
    if others is not None:
        differences = [one - other for one, other in zip(scores, others, strict=True)]
        spread = round(stdev(differences), 4) if len(differences) > 1 else None
        found |= {"above_seqkd": round(mean(differences), 4), "above_seqkd_deviation": spread}
    return found


def table(result: dict[str, Any]) -> str:
    """Format the results as a Markdown table."""
    lines = ["| student | bits per byte | of each seed | above seqkd | seconds |", "|---|---|---|---|---|"]
    for name, found in result["students"].items():
        seeds = ", ".join(f"{one:.3f}" for one in found["bits_per_byte"])
        above = f"{found['above_seqkd']:+.3f}" if "above_seqkd" in found else ""
        if found.get("above_seqkd_deviation") is not None:
            above += f" ± {found['above_seqkd_deviation']:.3f}"
        seconds = f"{mean(found['seconds']):.0f}" if "seconds" in found else ""
        lines.append(f"| {name} | {found['mean']:.3f} | {seeds} | {above} | {seconds} |")
    return "\n".join(lines)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the teacher: folder of a chat model")
    parser.add_argument("--student", type=Path, help="folder of a pretrained chat model; default: random weights")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=1024, help="size of the student's vocabulary")
    parser.add_argument("--prompts", type=int, default=80, help="number of questions, up to 400")
    parser.add_argument("--test-fraction", type=float, default=0.2)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--temperature", type=float, default=1.0, help="temperature of the divergence")
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--work", type=Path, help="folder for all files; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train all students and score them."""
    device = torch.device(args.device)
    prepare(args, folder)
    records = read_split(folder / "data", "test")
    trained = {name: [train(name, seed, args, folder) for seed in range(args.seeds)] for name in STUDENTS}
    scores = {name: [score(one, records, device) for one, _ in found] for name, found in trained.items()}
    log = (trained[SEQKD][0][0] / "training_log.jsonl").read_text().splitlines()
    found = {"teacher": summarize([score(Path(args.model), records, device)], None)}
    if args.student:
        found["before"] = summarize([score(args.student, records, device)], None)
    found |= {
        name: summarize(one, scores[SEQKD] if name != SEQKD else None)
        | {"seconds": [round(seconds, 1) for _, seconds in trained[name]]}
        for name, one in scores.items()
    }
    return {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(device),
        "settings": {n: v for n, v in vars(args).items() if n not in ("model", "student", "work", "out")},
        "teacher": Path(args.model).name,
        "student": args.student.name if args.student else "random weights",
        "steps": max(json.loads(line)["step"] for line in log),
        "held_out": {
            "records": len(records),
            "bytes": sum(len(one["messages"][2]["content"].encode()) for one in records),
        },
        "students": found,
        **({"trl": version("trl")} if GOLD in STUDENTS else {}),
    }


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print the results and write them."""
    run_benchmark(parse_args(argv), measure, table)


if __name__ == "__main__":
    run_script(main)
