"""Measure generation, training steps, signals and memory on a GPU against the alternatives, in limited time.

    make bench-gpu
    python benchmarks/gpu.py --only kd_step,generation --minutes 25

Nothing is downloaded: the models have random weights in the shapes of Qwen2.5-7B (teacher) and Qwen2.5-1.5B (student),
and are built on the GPU. Needs of the project only `benchmarks/` and `workflow/scripts/`, and of packages torch,
transformers, accelerate and psutil; TRL, Liger, vLLM and bitsandbytes are measured if they are installed.

Every measurement runs in a process of its own, which is stopped when the time is used up. Its result is written at
once to benchmarks/results/gpu_{card}_{date}.json, or to --out. A further run with the same file measures what has no
result yet. Prints tables at the end, and ends with exit code 1 if a measurement of this project's code failed.
"""

import argparse
import hashlib
import json
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow/scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_parts import FULL, PARTS, Measurement, choose_measurements, make_settings, sort_by_urgency  # noqa: E402
from gpu_table import compute_ratios, explain_missing, format_tables  # noqa: E402
from limited_process import run_job  # noqa: E402

from distill.common.errors import InputError, describe, run_script  # noqa: E402
from distill.common.files import write_json  # noqa: E402

RESULTS = Path(__file__).parent / "results"
DESCRIBE_SECONDS = 180  # time limit of the first process, which describes the machine
SHARE = 0.3  # largest share of the time that one measurement may take
LEAST_SECONDS = 5  # with less time left, no further measurement is started


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = "; ".join(f"{name}: {text}" for name, text in PARTS.items())
    parser.add_argument("--only", default="", help=f"parts to measure, separated by commas; default: all ({parts})")
    parser.add_argument("--shape", choices=[FULL, "tiny"], default=FULL, help="tiny rehearses the benchmark")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--minutes", type=float, default=25, help="time limit")
    parser.add_argument("--out", type=Path, help="JSON file for the results; default: see above")
    return parser.parse_args(argv)


def name_results(machine: dict[str, Any], shape: str) -> Path:
    """Return the default file of the results."""
    card = re.sub("[^a-z0-9]+", "-", (machine["gpu"] or "cpu").lower()).strip("-")
    kind = f"{card}_tiny" if shape == "tiny" else card
    return RESULTS / f"gpu_{kind}_{datetime.now(UTC).date().isoformat()}.json"


def open_results(path: Path, machine: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the results in a file, or empty ones if there is none.

    Raises:
        InputError: the file is no result of gpu.py, or was measured on another machine, with other versions or with
            other settings.
    """
    if not path.exists():
        date = datetime.now(UTC).date().isoformat()
        return {"date": date, "machine": machine, "settings": settings, "measurements": {}, "planned": {}}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        parts = {"machine": (found["machine"], machine), "settings": (found["settings"], settings)}
        for name in ("measurements", "planned"):
            found[name].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: expected results of this benchmark, found {type(error).__name__}: {error}"
        ) from error
    for name, (before, now) in parts.items():
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise InputError(
                    f"{path}: expected results of this {name} ({key} {describe(now.get(key))}), found "
                    f"{describe(before.get(key))}; choose another file with --out (OUT= of make)"
                )
    return found


def digest_code() -> str:
    """Return a digest of the code that measures and is measured."""
    files = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "workflow/scripts/distill").rglob("*.py")]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class Benchmark:
    """A run of the benchmark.

    Args:
        path: file of the results.
        result: its content.
        folder: empty folder for signals and expected losses.
        seconds: time limit, from the start of the run.
        started: when it was, by `time.monotonic`.
    """

    def __init__(self, path: Path, result: dict[str, Any], folder: Path, seconds: float, started: float):
        self.path, self.result, self.folder, self.seconds = path, result, folder, seconds
        self.end = started + seconds
        self.prepared: dict[str, str | None] = {}
        self.code = digest_code()

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.end - time.monotonic()

    def limit(self) -> float:
        """Return the time limit of the next process in seconds."""
        return max(LEAST_SECONDS, min(self.left(), SHARE * self.seconds))

    def save(self) -> None:
        """Write the results."""
        self.result["ratios"] = compute_ratios(self.result)
        write_json(self.path, self.result)

    def make_job(self, kind: str, **facts: Any) -> dict[str, Any]:
        """Return a job; see job.py."""
        return {"kind": kind, "settings": self.result["settings"], "folder": str(self.folder)} | facts

    def run_job(self, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Run a job; see `run_job`. The output of one that failed goes to standard error instead of the results."""
        outcome = run_job(job, seconds)
        if log := outcome.pop("log", None):
            print(log, file=sys.stderr, flush=True)
        return outcome

    def measure(self, one: Measurement) -> dict[str, Any]:
        """Take a measurement; return its row of the results."""
        if one.package and find_spec(one.package) is None:
            return {"skipped": f"{one.package} is not installed"}
        if self.left() < LEAST_SECONDS:
            return {"skipped": "no time was left"}
        folder = self.folder / one.group.replace("/", "_")
        if one.part == "kd_step" and (failed := self.prepare(one, folder)):
            return {"failed": f"its preparation failed: {failed}"}
        job = self.make_job("measure", measurement=asdict(one)) | {"folder": str(folder)}
        outcome = self.run_job(job, self.limit())
        return outcome.get("result", outcome)

    def prepare(self, one: Measurement, folder: Path) -> str | None:
        """Write signals and expected losses of a batch, once in a run; return why it failed, or None."""
        if one.group not in self.prepared:
            folder.mkdir()
            job = self.make_job("prepare", batch=one.batch) | {"folder": str(folder)}
            outcome = self.run_job(job, self.limit())
            self.prepared[one.group] = outcome.get("failed")
            if "result" in outcome:
                self.result.setdefault("preparation", {})[one.group] = outcome["result"]
        return self.prepared[one.group]

    def measure_all(self, measurements: Sequence[Measurement]) -> None:
        """Take the measurements that have no result, and write each as soon as it is there."""
        rows = self.result["measurements"]
        missing = [one for one in measurements if "seconds" not in rows.get(one.name, {})]
        attempted = [name for name, row in rows.items() if "failed" in row]
        for number, one in enumerate(sort_by_urgency(missing, attempted), start=1):
            row = self.measure(one)
            rows[one.name] = row | {"time": datetime.now(UTC).isoformat(timespec="seconds"), "code": self.code}
            self.save()
            done = f"{number}/{len(missing)}, {max(0, self.left()) / 60:.1f} minutes left"
            print(f"[{done}] {one.name}: {summarize(row)}", file=sys.stderr, flush=True)

    def plan(self, measurements: Sequence[Measurement]) -> None:
        """Add the memory plan's figures of this project's ways."""
        planned = self.result["planned"]
        missing = [one for one in measurements if one.is_ours and "failed" in planned.get(one.name, ["failed"])]
        if missing and self.left() >= LEAST_SECONDS:
            total = self.result["machine"].get("gpu_memory_mb")
            chosen = {one.name: {"part": one.part, "way": one.way, "batch": one.batch} for one in missing}
            facts = {"measurements": chosen, "total_bytes": total and total * 2**20}
            outcome = self.run_job(self.make_job("plan", **facts), self.left())
            if "failed" in outcome:
                print(f"memory plan: {outcome['failed']}", file=sys.stderr)
            planned |= outcome.get("result", {})
        self.save()


def summarize(row: dict[str, Any]) -> str:
    """Return a row in one line of the log."""
    return f"{row['seconds']} s" if "seconds" in row else explain_missing(row)


def stop(number: int, frame: Any) -> None:
    """End this process, and with it the measurement that runs; results are kept."""
    sys.exit(128 + number)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark and print the tables; return the exit code."""
    started = time.monotonic()
    measurements = choose_measurements([part.strip() for part in args.only.split(",") if part.strip()])
    settings = make_settings(args.shape, args.device)
    outcome = run_job({"kind": "describe", "settings": settings, "folder": ""}, DESCRIBE_SECONDS)
    if "failed" in outcome:
        hint = "; DEVICE=cpu SHAPE=tiny rehearses the benchmark without a GPU" if args.device == "cuda" else ""
        raise InputError(f"{outcome['failed']}{hint}")
    path = args.out or name_results(outcome["result"], args.shape)
    result = open_results(path, outcome["result"], settings)
    with tempfile.TemporaryDirectory() as folder:
        benchmark = Benchmark(path, result, Path(folder), 60 * args.minutes, started)
        benchmark.measure_all(measurements)
        benchmark.plan(measurements)
    print(format_tables(result))
    rows = {one: result["measurements"][one.name] for one in measurements}
    if any(row.get("skipped") == "no time was left" for row in rows.values()):
        command = shlex.join(["make", "bench-gpu", f"OUT={path}"])
        print(f"\nThe time did not suffice for all measurements; for the others run `{command}`.")
    failed = [one.name for one, row in rows.items() if one.is_ours and "failed" in row]
    if failed:
        print(f"error: failed: {', '.join(failed)}", file=sys.stderr)
    print(f"\nResults: {path}")
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    signal.signal(signal.SIGTERM, stop)
    sys.exit(run(parse_args(argv)))


if __name__ == "__main__":
    run_script(main)
