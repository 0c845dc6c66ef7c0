"""Measure how well students of every method learn, over temperatures and seeds, at equal steps.

    python benchmarks/quality.py --model SMOLLM2_FOLDER --work FOLDER --out benchmarks/results/quality.json

The teacher answers a fixed set of questions. Every student begins with the same ten of its layers and trains on the
same records: with seqkd, with every divergence at τ = 1 and τ = 2 from cached hidden states, and with some divergences
on the student's own samples in the second half of the steps. The three best train again with three times the steps. On
held-out questions, the workflow's own scripts measure perplexity and agreement with the teacher's answers, and ROUGE-L
and repetition of greedy answers. Means and standard deviations are over seeds; a seed decides the order of the records
and the sampling. The likelihood is averaged in nats per token, so that a perplexity here is a geometric mean; students
that do not learn have huge ones. Differences to forward KL at τ = 1 are taken seed by seed.

A run that is repeated with the same --work continues: a student that is scored is not trained again. Prints a Markdown
table; --out writes all results as JSON.
"""

import argparse
import dataclasses
import datetime
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from machine import describe_machine
from students import add_record_options, prepare_records, run, signal_options

import predict_answers
import score_predictions
import train_student
from distill.common.errors import run_script
from distill.common.files import write_json
from distill.student.divergences import METHODS

TEMPERATURES = (1.0, 2.0)
SEEDS = (42, 43, 44)
ON_POLICY = ("forward_kl", "reverse_kl", "jsd")
FIGURES = ("nats", "agreement", "rougeL", "repetition")
LONGER, BEST = 3, 3  # times the steps, for as many of the best students


@dataclass(frozen=True)
class Way:
    """One way to train a student.

    Attributes:
        alpha: weight of the divergence.
        is_on_policy: whether the second half of the steps trains on the student's own samples.
        length: multiple of the steps.
    """

    method: str
    temperature: float = 1.0
    alpha: float = 1.0
    is_on_policy: bool = False
    length: int = 1

    @property
    def name(self) -> str:
        """Name in tables and of files."""
        if not METHODS[self.method].needs_teacher:
            text = self.method
        else:
            alpha = "" if self.alpha == 1 else f" α={self.alpha:g}"
            text = f"{self.method} τ={self.temperature:g}{alpha}" + (" on-policy" if self.is_on_policy else "")
        return text + (f" ×{self.length}" if self.length > 1 else "")


BASELINE = Way("forward_kl")


def list_ways() -> list[Way]:
    """All ways at equal steps; `engine` needs cross-entropy beside it, which the defaults have, too."""
    ways = [Way(name) for name, method in METHODS.items() if not method.needs_teacher]
    for name, method in METHODS.items():
        if method.needs_teacher:
            ways += [Way(name, temperature, 0.5 if name == "engine" else 1.0) for temperature in TEMPERATURES]
    ways += [Way("forward_kl", temperature, 0.5) for temperature in TEMPERATURES]
    return ways + [Way(name, is_on_policy=True) for name in ON_POLICY]


# ---- One student ----


def list_training_options(way: Way, seed: int, args: argparse.Namespace, folder: Path) -> list[str]:
    """Options of train_student.py, without its output."""
    options: list[Any] = ["--data", folder / "data", "--name", "student", "--category", "questions"]
    options += ["--model", folder / "initial", "--checkpoints", folder / "checkpoints", "--device", args.device]
    options += ["--examples", folder / "examples"]
    options += ["--method", way.method, "--seed", seed, "--epochs", args.epochs * way.length]
    options += ["--batch-size", args.batch_size, "--gradient-accumulation-steps", 1, "--precision", args.precision]
    options += ["--learning-rate", args.learning_rate, "--no-gradient-checkpointing", "--logging-steps", 20]
    if METHODS[way.method].needs_teacher:
        options += ["--teacher-model", args.model, "--teacher-dtype", "float32"]
        options += ["--temperature", way.temperature, "--alpha", way.alpha]
        if way.is_on_policy:
            options += ["--signal", "online", "--on-policy-fraction", 1, "--on-policy-start", 0.5]
            options += ["--on-policy-max-new-tokens", args.max_new_tokens]
        else:
            options += ["--signal", "hidden", "--signal-folders", folder / "hidden"]
    return list(map(str, options))


def measure(way: Way, seed: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train and score a student, unless that is done; return its figures."""
    out = folder / "students" / way.name.replace(" ", "_") / str(seed)
    scores = out / "metrics.json"
    if not scores.exists():
        train_student.main([*list_training_options(way, seed, args, folder), "--out", str(out / "model")])
        score(out / "model", out, args, folder)
    return read_figures(scores)


def score(model: Path | str, out: Path, args: argparse.Namespace, folder: Path) -> None:
    """Write predictions and metrics of a model on the held-out questions."""
    asked = ["--test", folder / "data/test.jsonl", "--category", "questions", "--out", out / "predictions.jsonl"]
    asked += ["--model", model, "--dtype", "float32", "--device", args.device, "--journal", out / "journal"]
    asked += ["--max-new-tokens", args.max_new_tokens, "--temperature", 0]
    predict_answers.main(list(map(str, asked)))
    scored = ["--predictions", out / "predictions.jsonl", "--metrics", "ppl", "rouge", "shape"]
    score_predictions.main([*map(str, scored), "--out", str(out / "metrics.json")])


def read_figures(path: Path) -> dict[str, Any]:
    """The figures of a metrics file, without their intervals over records; `nats` are per token."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return {name: math.log(found["ppl"]) if name == "nats" else found[name] for name in FIGURES}


# ---- All students ----


def measure_all(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """The results after each student, the seeds of all ways before the next seed, so that a part is a fair part."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for seed in args.seeds:
        for way in args.ways:
            found.setdefault(way.name, {})[seed] = measure(way, seed, args, folder)
            yield report(found, args, folder)
    for way in choose_best(found, args.ways)[: args.best]:
        longer = dataclasses.replace(way, length=LONGER)
        for seed in args.seeds:
            found.setdefault(longer.name, {})[seed] = measure(longer, seed, args, folder)
            yield report(found, args, folder)


def choose_best(found: dict[str, dict[int, dict[str, Any]]], ways: Sequence[Way]) -> list[Way]:
    """The ways from the lowest to the highest mean negative log-likelihood."""
    return sorted(ways, key=lambda way: statistics.mean(one["nats"] for one in found[way.name].values()))


def summarize(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and sample standard deviation; None where a seed has no value, such as the repetition of short answers."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"mean": None, "sd": None}
    return {"mean": statistics.mean(known), "sd": statistics.stdev(known) if len(known) > 1 else None}


def report(found: dict[str, dict[int, dict[str, Any]]], args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All results so far."""
    ways = {}
    for name, seeds in found.items():
        ways[name] = {figure: summarize([one[figure] for one in seeds.values()]) for figure in FIGURES}
        ways[name] |= {"seeds": {str(seed): figures for seed, figures in seeds.items()}}
        shared = [seed for seed in seeds if seed in found.get(BASELINE.name, {})]
        if shared and name != BASELINE.name:
            differences = [seeds[seed]["nats"] - found[BASELINE.name][seed]["nats"] for seed in shared]
            ways[name]["nats_above_forward_kl"] = summarize(differences)
    others = {name: read_figures(folder / name / "metrics.json") for name in ("teacher", "before")}
    settings = {n: v for n, v in vars(args).items() if n not in ("model", "work", "out", "ways")}
    return {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(torch.device(args.device)),
        "settings": settings,
        "teacher": Path(args.model).name,
        "others": others,
        "ways": ways,
    }


def format_table(result: dict[str, Any]) -> str:
    """The results as a Markdown table, best first."""

    def show(value: float | None, digits: int) -> str:
        return "—" if value is None else f"{value:,.{digits}f}"

    def show_perplexity(nats: float) -> str:
        perplexity = math.exp(nats)
        return f"{perplexity:,.1f}" if perplexity < 100_000 else f"{perplexity:.0e}"

    def cell(found: dict[str, float | None], digits: int) -> str:
        spread = "" if found["sd"] is None else f" ± {show(found['sd'], digits)}"
        return show(found["mean"], digits) + spread

    lines = ["| student | perplexity | nats per token | agreement | ROUGE-L | repetition | nats above `forward_kl` |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    digits = {"nats": 3, "agreement": 3, "rougeL": 1, "repetition": 2}
    for name, figures in result["others"].items():
        cells = [show_perplexity(figures["nats"]), *(show(figures[one], places) for one, places in digits.items())]
        lines.append(f"| {name} | {' | '.join(cells)} | |")
    for name, way in sorted(result["ways"].items(), key=lambda item: item[1]["nats"]["mean"]):
        above = cell(way["nats_above_forward_kl"], 3) if "nats_above_forward_kl" in way else ""
        cells = [show_perplexity(way["nats"]["mean"]), *(cell(way[one], places) for one, places in digits.items())]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {above} |")
    return "\n".join(lines)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_record_options(parser)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--only", nargs="+", metavar="METHOD", choices=METHODS, help="default: all methods")
    parser.add_argument("--best", type=int, default=BEST, help="students that train again, three times as long")
    parser.add_argument("--work", type=Path, required=True, help="folder for all files")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args(argv)
    args.ways = [way for way in list_ways() if not args.only or way.method in args.only]
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print the table and write the results after every student."""
    args = parse_args(argv)
    folder = args.work
    if not (folder / "before/metrics.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        prepare_records(args, folder)
        run("compute_signal", *signal_options(args, folder), "--kind", "hidden", "--out", folder / "hidden")
        score(args.model, folder / "teacher", args, folder)
        score(folder / "initial", folder / "before", args, folder)
    for result in measure_all(args, folder):
        if args.out:
            write_json(args.out, result)
    print(format_table(result))


if __name__ == "__main__":
    run_script(main)
