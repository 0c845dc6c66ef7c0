"""Measure the speed and memory of a distillation step against common alternatives in one run.

    pip install --no-deps --requirement benchmarks/requirements.txt
    python benchmarks/kd_step.py --out benchmarks/results/kd_step.json

Ways: `plain` (full logits of both models, as in simple scripts), `trl_gkd` (the loss of TRL's GKDTrainer),
`trl_distillation` (the loss of its DistillationTrainer), `liger` (Liger's chunked linear JSD), and this project's
with the teacher in memory (`online`) or from the cached signal (`hidden`, `topk`). All use the same models, batch and
machine. Each runs in a new process, so that peak memory is measured separately. A step is forward, backward and
AdamW. The first loss of each way is checked against the expected one before results are reported. Prints a table;
--out writes it as JSON, with the number of operations per step and the time they take at the speed of a large matrix
product.
"""

import argparse
import datetime
import gc
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from kd_ways import OTHERS, OURS, SHAPES, count_operations, describe_models, expected_losses, make_step
from machine import describe_machine, measure_peak, reset_peak, synchronize
from ratios import compare

from distill.common.errors import InputError, run_script
from distill.common.files import write_json
from distill.models.load import select_device
from distill.models.memory import keep_freed_memory, memory_mb

# Relative tolerance of the first loss, by precision and way, and its default.
ROUNDING = {"fp32": {"hidden": 2e-3}, "bf16": {}}
USUAL_ROUNDING = {"fp32": 1e-4, "bf16": 2e-2}


def make_optimizer(name: str, model: Any) -> torch.optim.Optimizer:
    """Make an AdamW optimizer: torch's default, torch's fused one, or bitsandbytes' 8-bit one."""
    if name == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(model.parameters(), lr=1e-5)
    return torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True if name == "adamw_fused" else None)


def measure(way: str, args: argparse.Namespace, folder: Path, is_accumulated: bool = False) -> dict[str, Any]:
    """Measure the steps of one way.

    Args:
        way: from OTHERS or OURS.
        args: options of the command line.
        folder: folder of the cached signals.
        is_accumulated: whether the peak of a further step with two micro-batches is measured as well: its first
            gradients are kept during the second forward pass, as in the memory plan.
    """
    device = select_device(args.device)
    if device.type == "cpu" and way in OURS:
        keep_freed_memory()  # as in train_student.py
    student, step = make_step(way, args, device, folder)
    name = args.optimizer or ("adamw_fused" if way in OURS else "adamw")
    optimizer = make_optimizer(name, student)
    reset_peak(device)
    seconds, first = [], None
    for _ in range(args.steps + 1):
        gc.collect()
        synchronize(device)
        started = time.perf_counter()
        loss = step()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
        first = loss.item() if first is None else first
        del loss
    peak = {"peak_memory_mb": memory_mb(device), **measure_peak(device)}
    if is_accumulated:
        reset_peak(device)
        for _ in range(2):
            step().backward()
        optimizer.step()
        peak["accumulated"] = measure_peak(device)
    typical = statistics.median(seconds[1:])  # the first step allocates memory
    return {
        "seconds": round(typical, 3),
        "all_seconds": [round(one, 3) for one in seconds],
        "completion_tokens_per_second": round(args.batch * args.completion_tokens / typical, 1),
        **peak,
        "optimizer": name,
        "first_loss": first,
    }


def prepare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write the cached signals; return the expected losses and the speed of a large matrix product."""
    device = select_device(args.device)
    expected = expected_losses(args, device, folder)
    return {"expected_losses": expected, "gflops": measure_products(device, args.precision)}


def measure_products(device: torch.device, precision: str) -> float:
    """Return the speed of a large matrix product in billions of multiplications and additions a second."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    size = 4096 if device.type == "cpu" else 16384
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(6):
        synchronize(device)
        started = time.perf_counter()
        one @ other
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return round(2 * size**3 / min(seconds) / 1e9, 1)


def run_job(job: Any, pipe: Any, *arguments: Any) -> None:
    """Run a job and send (result, None) or (None, why it failed) to the pipe."""
    try:
        pipe.send((job(*arguments), None))
    except Exception as error:  # alternatives may fail in any way; the table then shows the reason
        pipe.send((None, f"{type(error).__name__}: {error}"))


def run_apart(job: Any, *arguments: Any) -> tuple[Any, str | None]:
    """Run a job in a new process; return (result, None) or (None, why it failed)."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_job, args=(job, sender, *arguments), daemon=True)
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        result = None, f"the process ended with exit code {process.exitcode} (killed for memory?)"
    process.join()
    return result


def check_losses(ways: dict[str, dict[str, Any]], expected: dict[str, float], precision: str) -> None:
    """Check the first loss of each way.

    Raises:
        InputError: a loss differs from the expected one; names the way.
    """
    for way, found in ways.items():
        if "first_loss" not in found:
            continue
        first, rounding = found["first_loss"], ROUNDING[precision].get(way, USUAL_ROUNDING[precision])
        if way in expected and not abs(first - expected[way]) <= rounding * abs(expected[way]):
            raise InputError(f"{way}: expected a first loss of {expected[way]:.6g}, found {first:.6g}")
        if way == "topk" and not 0 < first <= expected["online"] * (1 + rounding):
            raise InputError(f"topk: expected a loss below the exact one {expected['online']:.6g}, found {first:.6g}")


def ratios(ways: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Compute the speed and memory of this project's ways relative to each other way."""
    measured = {way: found for way, found in ways.items() if "seconds" in found}
    return compare(measured, OURS, lambda found: 1 / found["seconds"], "peak_memory_mb")


def table(result: dict[str, Any]) -> str:
    """Format the ways as a Markdown table."""
    lines = [
        "| way | seconds a step | completion tokens/s | peak memory (GiB) | speed beside plain |",
        "|---|---|---|---|---|",
    ]
    plain = result["ways"].get("plain", {}).get("seconds")
    for way, found in result["ways"].items():
        if "seconds" not in found:
            lines.append(f"| {way} | {found['failed']} | | | |")
            continue
        speed = f"{plain / found['seconds']:.1f} ×" if plain else ""
        memory = f"{found['peak_memory_mb'] / 1024:.1f}"
        lines.append(
            f"| {way} | {found['seconds']:.2f} | {found['completion_tokens_per_second']:.0f} | {memory} | {speed} |"
        )
    return "\n".join(lines)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=[*OTHERS, *OURS], default=[*OTHERS, *OURS])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=400)
    parser.add_argument("--completion-tokens", type=int, default=100)
    parser.add_argument("--steps", type=int, default=3, help="number of measured steps, after one warm-up step")
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--teacher-quantization", choices=["none", "int8", "nf4"], default="none")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    optimizers = ["adamw", "adamw_fused", "adamw_8bit"]
    parser.add_argument(
        "--optimizer", choices=optimizers, help="default: adamw_fused for this project's ways, else adamw"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, check and print the results, and write them."""
    args = parse_args(argv)
    device = select_device(args.device)
    args.device = device.type
    ways: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        prepared, failed = run_apart(prepare, args, Path(folder))
        if failed:
            raise InputError(failed)
        for way in args.ways:
            found, failed = run_apart(measure, way, args, Path(folder))
            ways[way] = found or {"failed": failed}
            print(f"{way:>16}: {ways[way]}", file=sys.stderr, flush=True)
    check_losses(ways, prepared["expected_losses"], args.precision)
    shape = args.batch, args.prompt_tokens, args.completion_tokens
    operations = count_operations(args.shape, *shape)
    rate = prepared["gflops"]
    large = count_operations("qwen2.5-7b-1.8b", *shape)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(device) | {"gflops": rate},
        "settings": {name: value for name, value in vars(args).items() if name not in ("out", "ways")},
        "models": describe_models(args),
        "expected_losses": prepared["expected_losses"],
        "ways": ways,
        "ratios": ratios(ways),
        "gigaoperations": {way: round(count / 1e9, 1) for way, count in operations.items()},
        "floor_seconds": {way: round(count / 1e9 / rate, 3) for way, count in operations.items()},
        "operations_beside_online_7b_to_1.8b": {
            way: round(large["online"] / large[way], 2) for way in ("hidden", "topk")
        },
    }
    print(table(result))
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    run_script(main)
