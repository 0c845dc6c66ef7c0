"""Measure what it costs when the threads of two jobs wait for each other on the same processors.

    python benchmarks/waiting.py [--steps 60] [--runs 3]

Each job trains a small model with as many threads as there are processors. It runs alone, and beside a second one, with
GNU OpenMP's default, with the workflow's setting (`distill.common.threads`), with OMP_WAIT_POLICY=PASSIVE, and with one
thread. Prints a table and writes benchmarks/results/waiting_{date}.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow/scripts"))

from distill.common.files import write_json  # noqa: E402
from distill.common.threads import SPINS, WAITING  # noqa: E402

RESULTS = Path(__file__).parent / "results"
WAYS: dict[str, dict[str, str]] = {
    "default": {},
    "workflow": {WAITING[0]: SPINS},
    "passive": {WAITING[1]: "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BATCH, LENGTH, VOCABULARY = 8, 128, 4096


def work(steps: int) -> None:
    """Train a model of two layers; print the seconds of the steps after the first one."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=2, **sizes))
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH))
    for step in range(steps + 1):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            print("ready", flush=True)
            sys.stdin.readline()  # all jobs begin together
            began = time.perf_counter()
    print(time.perf_counter() - began, flush=True)


def measure(way: dict[str, str], jobs: int, steps: int) -> float:
    """Run jobs at the same time; return the seconds until the last one has taken its steps."""
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    environment |= {"OMP_NUM_THREADS": str(os.cpu_count())} | way
    command = [sys.executable, __file__, "--work", "--steps", str(steps)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, env=environment, **pipes) for _ in range(jobs)]  # type: ignore[call-overload]
    for job in running:
        if job.stdout.readline() != "ready\n":
            raise RuntimeError("a job did not start; see its error above")
    for job in running:
        job.stdin.write("\n")
        job.stdin.flush()
    return max(float(job.communicate()[0]) for job in running)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="training steps of a job")
    parser.add_argument("--runs", type=int, default=3, help="repetitions, of which the median counts")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print the results and write them."""
    args = parse_args(argv)
    if args.work:
        work(args.steps)
        return
    rows: list[dict[str, Any]] = []
    print("| threads wait | alone, s | two jobs, s | two jobs, of the default |\n| --- | ---: | ---: | ---: |")
    for name, way in WAYS.items():
        alone, two = (statistics.median(measure(way, jobs, args.steps) for _ in range(args.runs)) for jobs in (1, 2))
        rows.append({"way": name, "environment": way, "alone_seconds": round(alone, 2), "two_seconds": round(two, 2)})
        print(f"| {name} | {alone:.2f} | {two:.2f} | {two / rows[0]['two_seconds']:.2f} |", flush=True)
    import torch
    from machine import describe_machine

    date = datetime.now(UTC).strftime("%Y-%m-%d")
    found = {"date": date, "machine": describe_machine(torch.device("cpu")), "steps": args.steps, "rows": rows}
    write_json(args.out / f"waiting_{date}.json", found)
    print(json.dumps(found["machine"]))


if __name__ == "__main__":
    main()
