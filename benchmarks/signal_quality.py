"""Measure what a student learns from each training signal, with the same initial student, records and steps.

    python benchmarks/signal_quality.py --model SMOLLM2_FOLDER --out benchmarks/results/signal_quality.json

The teacher answers a fixed set of questions. Students initialised with ten of its layers are trained on the answers, by
seqkd, and by forward_kl and jsd with the teacher in memory, its cached hidden states, or its top 16, 64 and 256 tokens.
On held-out answers, perplexity and agreement are measured, with 95 % bootstrap intervals over records. Agreement is how
often student and teacher have the same most likely next token. Differences to the student of the online teacher use the
same resamples. For that student, the top-k divergence, with one bucket for all other tokens, is also compared with the
exact one. Prints Markdown tables; --out writes all results as JSON.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from machine import describe_machine
from students import Rows, add_record_options, prepare_records, read_rows, run, run_benchmark, signal_options

from distill.common.errors import run_script
from distill.evaluation.bootstrap import Statistic, estimate_all
from distill.models.chat import ChatTemplate
from distill.models.completions import decoder_and_head
from distill.models.examples import encode_examples
from distill.models.load import load_model, load_tokenizer
from distill.models.vocabulary import vocabulary_size
from distill.records.splits import read_split
from distill.student.fused_loss import distillation_loss
from distill.student.loss import ExactTeacher, Objective, TopKTeacher
from distill.teacher.signal_files import topk_at
from distill.teacher.signal_size import SignalShape
from distill.teacher.signal_teacher import top_log_probabilities

TOP_KS = (16, 64, 256)
ONLINE = "forward_kl online"
STUDENTS: dict[str, dict[str, Any]] = {
    "seqkd": {"method": "seqkd"},
    ONLINE: {"method": "forward_kl", "signal": "online"},
    "forward_kl hidden": {"method": "forward_kl", "signal": "hidden"},
    **{f"forward_kl topk {k}": {"method": "forward_kl", "signal": "topk", "top_k": k} for k in TOP_KS},
    "jsd online": {"method": "jsd", "signal": "online"},
}


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """Make answers, splits, the initial student and the cached signals."""
    prepare_records(args, folder)
    run("compute_signal", *signal_options(args, folder), "--kind", "hidden", "--out", folder / "hidden")
    for k in TOP_KS:
        kept = ["--kind", "topk", "--top-k", k, "--temperatures", args.temperature, "--out", folder / f"topk_{k}"]
        run("compute_signal", *signal_options(args, folder), *kept)


def train(name: str, args: argparse.Namespace, folder: Path) -> Path:
    """Train a student and return its folder."""
    student, out = STUDENTS[name], folder / name.replace(" ", "_")
    options = ["--data", folder / "data", "--out", out, "--checkpoints", folder / "checkpoints"]
    options += ["--examples", folder / "examples"]
    options += ["--name", "student", "--category", "questions", "--model", folder / "initial"]
    options += ["--method", student["method"], "--device", args.device, "--precision", "fp32"]
    options += ["--epochs", args.epochs, "--batch-size", args.batch_size, "--gradient-accumulation-steps", 1]
    options += ["--learning-rate", args.learning_rate, "--no-gradient-checkpointing", "--logging-steps", 20]
    if student["method"] != "seqkd":
        options += ["--teacher-model", args.model, "--teacher-dtype", "float32", "--signal", student["signal"]]
        options += ["--temperature", args.temperature, "--alpha", args.alpha]
    if student.get("signal") in ("hidden", "topk"):
        top_k = student.get("top_k")
        options += ["--top-k", top_k] if top_k else []
        options += ["--signal-folders", folder / (f"topk_{top_k}" if top_k else "hidden")]
    run("train_student", *options)
    return out


@torch.inference_mode()
def score(folder: Path, examples: Rows, teacher: Rows, device: torch.device) -> list[tuple[float, int, int]]:
    """Return (negative log-likelihood, tokens that agree with the teacher, tokens) for each held-out answer."""
    model = load_model(str(folder), device, torch.float32, for_generation=False)
    _, head = decoder_and_head(model)
    scores = []
    for example, known in zip(examples, teacher, strict=True):
        logits = head(read_rows(model, example)).double()
        targets = torch.tensor(example["completion"])
        nll = -logits.log_softmax(-1).gather(1, targets[:, None]).sum().item()
        scores.append((nll, int((logits.argmax(-1) == known["likeliest"]).sum()), len(targets)))
    return scores


def estimate(scores: list[tuple[float, int, int]], online: list[tuple[float, int, int]] | None, seed: int) -> Any:
    """Estimate perplexity, agreement and the difference of log-perplexity to the online student, with intervals."""
    nll, same, tokens = (np.array(column, dtype=float) for column in zip(*scores, strict=True))
    n = len(scores)
    figures = {
        "perplexity": Statistic(lambda w: np.exp((w @ nll) / (w @ tokens)), n),
        "agreement": Statistic(lambda w: (w @ same) / (w @ tokens), n),
    }
    if online is not None:
        other = np.array([one[0] for one in online])
        figures["nats_above_online"] = Statistic(lambda w: (w @ (nll - other)) / (w @ tokens), n)
    found = estimate_all(figures, n, 2000, seed)
    return {name: [round(x, 4) for x in (one.value, one.low, one.high) if x is not None] for name, one in found.items()}


@torch.inference_mode()
def measure_gap(student: Path, args: argparse.Namespace, examples: Rows, device: torch.device) -> list[dict[str, Any]]:
    """Compare top-k divergences with the exact one, per completion token, for each k."""
    models = [load_model(str(m), device, torch.float32, for_generation=False) for m in (student, args.model)]
    heads = [decoder_and_head(model)[1] for model in models]
    vocabulary = vocabulary_size(load_tokenizer(args.model))
    objective = Objective("forward_kl", args.temperature, 1.0, vocabulary=vocabulary)
    sums = dict.fromkeys((0, *TOP_KS), 0.0)
    tokens, tails = 0, dict.fromkeys(TOP_KS, 0.0)
    for example in examples:
        rows, of_teacher = (read_rows(model, example) for model in models)
        targets = torch.tensor(example["completion"])
        tokens += len(targets)
        exact = distillation_loss(rows, heads[0], targets, ExactTeacher(of_teacher, heads[1]), objective)
        sums[0] += exact.kd.item()
        logits = heads[1](of_teacher)[:, :vocabulary]
        for k in TOP_KS:
            kept = top_log_probabilities(logits, k, [args.temperature])
            log_probabilities, tail = topk_at(kept["logprobs"], kept["log_tail"][:, 0], args.temperature)
            teacher = TopKTeacher(kept["ids"], log_probabilities, tail)
            sums[k] += distillation_loss(rows, heads[0], targets, teacher, objective).kd.item()
            tails[k] += tail.exp().sum().item()
    return [
        {
            "top_k": k,
            "bytes_per_token": SignalShape("topk", None, k, [args.temperature], vocabulary).bytes_per_token,
            "probability_of_the_rest": round(tails[k] / tokens, 4),
            "exact_nats": round(sums[0] / tokens, 4),
            "bucketed_nats": round(sums[k] / tokens, 4),
            "gap_percent": round(100 * (1 - sums[k] / sums[0]), 2),
        }
        for k in TOP_KS
    ]


def tables(result: dict[str, Any]) -> str:
    """Format the results as Markdown tables."""

    def interval(values: list[float], digits: int) -> str:
        value, low, high = (f"{one:.{digits}f}" for one in values)
        return f"{value} ({low} to {high})"

    lines = ["| student | perplexity | agreement | nats above online |", "|---|---|---|---|"]
    for name, found in result["students"].items():
        above = interval(found["nats_above_online"], 3) if "nats_above_online" in found else ""
        figures = f"{interval(found['perplexity'], 2)} | {interval(found['agreement'], 3)}"
        lines.append(f"| {name} | {figures} | {above} |")
    lines += [
        "",
        "| k | bytes a token | probability of the rest | exact | bucketed | gap |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one['top_k']} | {one['bytes_per_token']} | {one['probability_of_the_rest']} | {one['exact_nats']} "
        f"| {one['bucketed_nats']} | {one['gap_percent']} % |"
        for one in result["gaps"]
    ]
    return "\n".join(lines)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_record_options(parser)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--temperature", type=float, default=1.0, help="temperature of the divergence")
    parser.add_argument("--alpha", type=float, default=0.9)
    parser.add_argument("--work", type=Path, help="folder for all files; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train all students and score them."""
    device = torch.device(args.device)
    prepare(args, folder)
    tokenizer = load_tokenizer(args.model)
    examples = encode_examples(read_split(folder / "data", "test"), ChatTemplate(tokenizer), None, 2048)
    teacher = load_model(args.model, device, torch.float32, for_generation=False)
    _, head = decoder_and_head(teacher)
    with torch.inference_mode():
        known = [{"likeliest": head(read_rows(teacher, example)).argmax(-1)} for example in examples]
    folders = {"teacher": Path(args.model), "before": folder / "initial"}
    folders |= {name: train(name, args, folder) for name in STUDENTS}
    scores = {name: score(path, examples, known, device) for name, path in folders.items()}
    beside = {name: scores[ONLINE] if name in STUDENTS and name != ONLINE else None for name in folders}
    students = {name: estimate(scores[name], beside[name], seed=0) for name in folders}
    log = (folder / ONLINE.replace(" ", "_") / "training_log.jsonl").read_text().splitlines()
    return {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(device),
        "settings": {n: v for n, v in vars(args).items() if n not in ("model", "work", "out")},
        "teacher": Path(args.model).name,
        "steps": max(json.loads(line)["step"] for line in log),
        "held_out": {"records": len(examples), "tokens": sum(len(one["completion"]) for one in examples)},
        "students": students,
        "gaps": measure_gap(folders[ONLINE], args, examples, device),
    }


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print the results and write them."""
    run_benchmark(parse_args(argv), measure, tables)


if __name__ == "__main__":
    run_script(main)
