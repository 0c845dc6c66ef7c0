"""Measure training steps with and without packing, on records of mixed length.

    python benchmarks/packing.py --model SMOLLM2_FOLDER --out benchmarks/results/packing.json

Both ways train the same model by seqkd on the same records of random tokens, in turn: every step is measured as rows of
one record each and as packed rows, so that other work on the machine slows both. The learning rate is 0, and the losses
of both ways are compared. Prints a Markdown table; --out writes all results as JSON.
"""

import argparse
import datetime
import math
import os
import random
import statistics
import sys
import time
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from machine import describe_machine, synchronize

from distill.common.errors import InputError, run_script
from distill.common.files import write_json
from distill.models.completions import collate, to_device
from distill.models.examples import Example
from distill.models.load import checkpoint_activations, load_model, select_device
from distill.models.memory import keep_freed_memory
from distill.models.packing_check import check_packing
from distill.student.fused_loss import score_completions
from distill.student.loss import Objective
from distill.student.step_batches import StepBatches, pack_step

WAYS = ("plain", "packed")
ROUNDING = 1e-4  # largest difference of the ways' losses, relative
SPREAD = 0.7  # standard deviation of the logarithm of lengths


def make_examples(args: argparse.Namespace, vocabulary: int) -> list[Example]:
    """Make records of random tokens with log-normal lengths, as texts have them; half of each is the completion."""
    source = random.Random(0)
    count = args.batch_size * args.accumulation * args.steps
    lengths = [round(args.median_length * math.exp(source.gauss(0, SPREAD))) for _ in range(count)]
    rows = [[source.randrange(vocabulary) for _ in range(min(max(length, 4), args.max_length))] for length in lengths]
    return [{"prompt": row[: len(row) // 2], "completion": row[len(row) // 2 :]} for row in rows]


def run_step(
    model: Any, optimizer: torch.optim.Optimizer, batches: list[list[Example]], row_length: int | None
) -> dict[str, Any]:
    """Measure an optimizer step over micro-batches; see `collate` for `row_length`."""
    synchronize(model.device)
    started, loss, tokens, positions = time.perf_counter(), 0.0, 0, 0
    count = sum(len(example["completion"]) for batch in batches for example in batch)
    for examples in batches:
        prompts, completions = ([example[name] for example in examples] for name in ("prompt", "completion"))
        batch = to_device(collate(prompts, completions, 0, row_length), model.device)
        terms = model(**batch, teacher=None, objective=Objective("seqkd", 1.0, 0.0), scale=1 / count)
        (terms[0] / count).backward()
        loss += terms[0].item() / count
        tokens += sum(map(len, prompts)) + sum(map(len, completions))
        positions += batch["input_ids"].numel()
    optimizer.step()
    optimizer.zero_grad()
    synchronize(model.device)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "loss": loss, "micro_batches": len(batches), "padding": 1 - tokens / positions}


def measure(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Measure every step in both ways, in turn; the first step once more before, since it allocates memory.

    Raises:
        InputError: the losses of a step differ.
    """
    device = select_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()  # as in train_student.py
    model = load_model(str(args.model), device, torch.float32, trainable=True).to(device)
    check_packing(str(args.model), model, args.max_length)
    model.forward = types.MethodType(score_completions, model)
    if args.gradient_checkpointing:
        checkpoint_activations(model)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    examples = make_examples(args, model.config.vocab_size)
    lengths = [len(example["prompt"]) + len(example["completion"]) for example in examples]
    batches = StepBatches(lengths, args.batch_size, args.accumulation, seed=0)
    steps = batches.steps(0)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for number, step in enumerate([steps[0], *steps]):
        plain = [[examples[index] for index in batch] for batch in batches.split_step(step)]
        packed = pack_step([example for batch in plain for example in batch], args.max_length, args.batch_size)
        pair = [run_step(model, optimizer, plain, None), run_step(model, optimizer, packed, args.max_length)]
        one, other = (result["loss"] for result in pair)
        if abs(one - other) > ROUNDING * abs(one):
            raise InputError(f"step {number}: expected the same loss in both ways, found {one} and {other}")
        for way, result in zip(WAYS, pair if number else (), strict=False):
            found[way].append(result)
    return found


def summarize(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarize a way's steps."""
    return {
        "seconds": round(statistics.median(step["seconds"] for step in steps), 3),
        "micro_batches": statistics.mean(step["micro_batches"] for step in steps),
        "padding": round(statistics.mean(step["padding"] for step in steps), 3),
        "losses": [step["loss"] for step in steps],
        "all_seconds": [round(step["seconds"], 3) for step in steps],
    }


def table(result: dict[str, Any]) -> str:
    """Render the results as Markdown."""
    lines = ["| rows | seconds a step | micro-batches a step | padding |", "| --- | ---: | ---: | ---: |"]
    for way, row in result["ways"].items():
        lines.append(f"| {way} | {row['seconds']:.2f} | {row['micro_batches']:.1f} | {row['padding']:.0%} |")
    low, middle, high = result["speed_of_packed"]
    return "\n".join([*lines, "", f"packed is {middle} times as fast (median of the steps; {low} to {high})"])


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a pretrained model")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--median-length", type=int, default=80, help="median length of the records in tokens")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    args = parse_args(argv)
    device = select_device(args.device)
    load = os.getloadavg()[0]
    found = measure(args)
    speeds = sorted(one["seconds"] / other["seconds"] for one, other in zip(*found.values(), strict=True))
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(device),
        "load_average": round(load, 1),
        "settings": {name: value for name, value in vars(args).items() if name not in ("model", "out")},
        "ways": {way: summarize(steps) for way, steps in found.items()},
        "speed_of_packed": [round(one, 2) for one in (speeds[0], statistics.median(speeds), speeds[-1])],
    }
    print(table(result))
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    run_script(main)
