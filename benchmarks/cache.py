"""Measure a run whose answers all come from the cache: seconds and memory for 10,000 to 100,000 answers.

    python benchmarks/cache.py

Writes synthetic prompts and answers of realistic length to a temporary folder. For each number of answers, a new
process then runs the workflow's code: read the prompts, generate answers, write them. The teacher fails if an answer
is not in the cache. Prints a table and writes benchmarks/results/cache_{date}.json.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[1] / "workflow/scripts"
sys.path.insert(0, str(SCRIPTS))

from distill.common.files import write_json, write_jsonl  # noqa: E402
from distill.generation.answer_cache import CacheWriter, iterate_answers  # noqa: E402
from distill.generation.sampling import Generated, Request  # noqa: E402
from distill.teacher.generate_answers import AnswerSettings, answer_prompts, load_prompts  # noqa: E402

RESULTS = Path(__file__).parent / "results"
SYSTEM = "You are the manager of a pension fund that holds stocks for the long term. " * 6
SENTENCE = "Market equity rose by {:.3f} → the share of the stock falls by {:.3f} unless it is bought. "


class SilentTeacher:
    """An engine that fails if it has to generate, since all answers are in the cache."""

    def fingerprint(self) -> str:
        """Return the name of its cache folder."""
        return "0" * 32

    def describe(self) -> dict[str, Any]:
        """Return the contents of teacher.json."""
        return {"engine": "none"}

    def find_overlong(self, requests: list[Request]) -> dict[str, str]:
        """Find no overlong prompts."""
        return {}

    def generate(self, requests: list[Request]) -> Iterator[list[tuple[Request, Generated]]]:
        """Fail: an answer is missing in the cache."""
        raise AssertionError(f"{len(requests)} answers are not in the cache")

    depends_on_batch = False

    def peak_memory_mb(self) -> int:
        """Return 0, since there is no model."""
        return 0

    def peak_reserved_mb(self) -> int:
        """Return 0, since there is no model."""
        return 0


def make_text(number: int, length: int) -> str:
    """Make a text of `length` characters that differs by number; as in real answers, some are not ASCII."""
    sentence = SENTENCE.format(number % 997 / 997, number % 1009 / 1009)
    return (sentence * (length // len(sentence) + 1))[:length]


def make_prompts(count: int) -> Iterator[dict[str, Any]]:
    """Yield prompts of about 1.5 kB with a system text of 0.5 kB."""
    for number in range(count):
        uid = hashlib.md5(str(number).encode()).hexdigest()
        prompt = f"Estimate {number}. {make_text(number, 1500)}"
        yield {"id": number, "uid": uid, "system": SYSTEM, "prompt": prompt, "label": 0.1, "origin": "grpo"}


def make_answer(number: int, uid: str) -> dict[str, Any]:
    """Make an answer of about 2 kB."""
    text = f'<think>{make_text(number, 1800)}</think>\n<answer>\n{{"holding_log_delta": 0.{number}}}\n</answer>'
    kept = {"uid": uid, "sample": 0, "raw_output": text, "finish_reason": "stop"}
    return kept | {"generated_tokens": 500, "prompt_tokens": 600}


def fill(folder: Path, count: int) -> None:
    """Write prompts and cached answers, a hundred at a time as in a run."""
    write_jsonl(folder / "prompts.jsonl", make_prompts(count))
    waiting: list[dict[str, Any]] = []
    with CacheWriter(folder / "cache" / SilentTeacher().fingerprint(), SilentTeacher().describe()) as writer:
        for number, prompt in enumerate(make_prompts(count)):
            waiting.append(make_answer(number, prompt["uid"]))
            if len(waiting) == 100:
                writer.add(waiting)
                waiting = []
        writer.add(waiting)


def run(folder: Path) -> None:
    """Run the code under test; print its seconds and peak memory in MiB."""
    start = time.perf_counter()
    prompts = load_prompts(folder / "prompts.jsonl")
    records, stats = answer_prompts(prompts, SilentTeacher(), AnswerSettings("holding_log_delta"), folder / "cache")
    write_jsonl(folder / "answers.jsonl", records)
    if stats["from_cache"] != len(prompts) or stats["usable"] != len(prompts):
        raise AssertionError(f"not all answers came from the cache: {stats}")
    seconds = time.perf_counter() - start
    if "torch" in sys.modules:
        raise AssertionError("torch was imported")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    print(json.dumps({"seconds": round(seconds, 2), "peak_mib": round(peak)}))


def measure(count: int) -> dict[str, Any]:
    """Measure one number of answers and return a row of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        fill(folder, count)
        filling = time.perf_counter() - start
        cached = sum(path.stat().st_size for path in (folder / "cache").rglob("*.jsonl"))
        command = [sys.executable, __file__, "--run", name]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        assert sum(1 for _ in iterate_answers(folder / "cache" / SilentTeacher().fingerprint())) == count
    return {"answers": count, "cache_mib": round(cached / 2**20), "writing_seconds": round(filling, 2), **found}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--run", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print the results and write them."""
    args = parse_args(argv)
    if args.run:
        run(args.run)
        return
    rows = []
    print("| answers | cache MiB | seconds to write it | seconds | µs an answer | peak MiB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for count in args.answers:
        row = measure(count)
        rows.append(row)
        each = 1e6 * row["seconds"] / count
        values = [f"{count:,}", row["cache_mib"], row["writing_seconds"], row["seconds"], f"{each:.0f}"]
        print(f"| {' | '.join(map(str, values))} | {row['peak_mib']} |", flush=True)
    import torch  # only now: the peak memory of a process includes that of its parent
    from machine import describe_machine

    machine = describe_machine(torch.device("cpu"))
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    write_json(RESULTS / f"cache_{date}.json", {"date": date, "machine": machine, "rows": rows})


if __name__ == "__main__":
    main()
