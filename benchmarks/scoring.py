"""Measure how long scoring and comparing models takes, and how much memory, by the number of test records.

    pip install rouge-score
    python benchmarks/scoring.py

Writes synthetic Chinese predictions of 400 to 1,000 characters of several models to a temporary folder, with values and
likelihoods, and runs the workflow's own scripts on them with all metrics: score_predictions.py once a model, and
compare_models.py. The alternative is rouge-score's own ROUGE-L, in pure Python, on a few of the same records and
extrapolated to all. Prints a table and writes benchmarks/results/scoring_{date}.json.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[1] / "workflow/scripts"
sys.path.insert(0, str(SCRIPTS))

from distill.common.files import write_json, write_jsonl  # noqa: E402

RESULTS = Path(__file__).parent / "results"
METRICS = ["answer", "ppl", "bleu", "chrf", "rouge", "fdistill", "shape"]
OPTIONS = ["--metrics", *METRICS, "--tokenize", "zh", "--answer-key", "value", "--bootstrap", "1000"]
WORDS = 4000  # of 1 to 4 characters; as in a language, a word's frequency is inverse to its rank
KEPT = 0.7  # words of the reference that an answer keeps
ALTERNATIVE = (8, 16)  # records


def make_words(rng: random.Random) -> list[str]:
    """Make the words of a language that looks like Chinese to the metrics."""
    characters = [chr(0x4E00 + place) for place in range(3000)]
    weights = [*accumulate(1 / (place + 10) for place in range(len(characters)))]
    return ["".join(rng.choices(characters, cum_weights=weights, k=rng.randrange(1, 5))) for _ in range(WORDS)]


class Writer:
    """Draws references and answers; the same seed gives the same texts."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.words = make_words(random.Random(0))
        self.weights = [*accumulate(1 / (place + 10) for place in range(WORDS))]

    def draw(self, count: int) -> list[str]:
        """Draw words, with a comma or a full stop after some of them."""
        words = self.rng.choices(self.words, cum_weights=self.weights, k=count)
        return [word + self.rng.choice("，。") if self.rng.random() < 0.1 else word for word in words]

    def write(self) -> list[str]:
        """Write a text of 400 to 1,000 characters, as words."""
        return self.draw(self.rng.randrange(155, 385))

    def change(self, text: Sequence[str]) -> list[str]:
        """Replace some words of a text."""
        others = self.draw(len(text))
        return [word if self.rng.random() < KEPT else other for word, other in zip(text, others, strict=True)]


def make_predictions(model: int, count: int) -> Iterator[dict[str, Any]]:
    """Yield a model's answers to the same prompts as those of the other models."""
    references, answers = Writer(1), Writer(model + 2)
    for number in range(count):
        reference, label = references.write(), references.rng.gauss(0, 1)
        yield {
            "id": number,
            "uid": f"{number:032x}",
            "category": "questions",
            "system": "回答问题。",
            "prompt": f"问题{number}：" + "".join(reference[:30]),
            "reference": "".join(reference),
            "prediction": "".join(answers.change(reference)),
            "finish_reason": "stop",
            "usable": answers.rng.random() < 0.95,
            "label": label,
            "parsed_value": label + answers.rng.gauss(0, 0.3),
            "nll": answers.rng.uniform(300, 900),
            "nll_tokens": len(reference),
            "nll_hits": answers.rng.randrange(len(reference)),
        }


def make_judgements(models: Sequence[str], count: int) -> Iterator[dict[str, Any]]:
    """Yield the teacher's likelihood of all answers."""
    rng = random.Random(0)
    for model in models:
        for number in range(count):
            record = {"model": model, "category": "questions", "uid": f"{number:032x}"}
            yield record | {"nll": rng.uniform(300, 900), "nll_tokens": rng.randrange(200, 500), "nll_hits": 100}


def run_script(name: str, *options: str | Path) -> dict[str, float]:
    """Run one of the workflow's scripts; return its seconds, CPU seconds and peak memory in MiB."""
    start = time.perf_counter()
    command = [sys.executable, SCRIPTS / f"{name}.py", *options]
    # As in a job of a rule with one thread.
    one_thread = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    process = subprocess.Popen(list(map(str, command)), env=os.environ | one_thread, stderr=subprocess.PIPE)
    assert process.stderr is not None
    log = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if process.returncode is None:
        process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise AssertionError(f"{name} failed:\n{log}")
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {"seconds": time.perf_counter() - start, "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_mib": peak}


def measure(folder: Path, models: int, count: int, jobs: int) -> dict[str, Any]:
    """Score and compare models with `count` records each; return a row of the table."""
    names = [f"model{number}" for number in range(models)]
    for number, name in enumerate(names):
        write_jsonl(folder / name / "questions.predictions.jsonl", make_predictions(number, count))
    write_jsonl(folder / "questions.judged.jsonl", make_judgements(names, count))

    def score(name: str) -> dict[str, float]:
        own = folder / name / "questions"
        files = ["--predictions", f"{own}.predictions.jsonl", "--judged", str(folder / "questions.judged.jsonl")]
        out = ["--out", f"{own}.metrics.json", "--statistics-out", f"{own}.statistics.npz"]
        return run_script("score_predictions", *files, *OPTIONS, *out)

    start = time.perf_counter()
    with ThreadPoolExecutor(jobs) as pool:
        scored = [*pool.map(score, names)]
    pairs = [f"{name}:{other}" for place, name in enumerate(names) for other in names[place + 1 :]]
    statistics = [folder / name / "questions.statistics.npz" for name in names]
    compared = run_script(
        "compare_models", "--statistics", *statistics, "--pairs", *pairs, *OPTIONS, "--out", folder / "comparisons.csv"
    )
    peak = max(min(jobs, models) * max(one["peak_mib"] for one in scored), compared["peak_mib"])
    return {
        "records": count,
        "models": models,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(sum(one["cpu_seconds"] for one in [*scored, compared]), 1),
        "cpu_seconds_of_one_scoring": round(sum(one["cpu_seconds"] for one in scored) / models, 2),
        "cpu_seconds_of_comparing": round(compared["cpu_seconds"], 2),
        "peak_mib_of_one_scoring": round(max(one["peak_mib"] for one in scored)),
        "peak_mib_of_comparing": round(compared["peak_mib"]),
        "peak_mib_in_all": round(peak),
        "statistics_mib": round(statistics[0].stat().st_size / 2**20, 2),
        "predictions_mib": round((folder / names[0] / "questions.predictions.jsonl").stat().st_size / 2**20, 2),
    }


def measure_alternative(scoring: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Time rouge-score's ROUGE-L on a few records, and extrapolate its seconds to the rows of the table."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer

    from distill.generation.repetition import split_tokens

    class AnyScript(Tokenizer):  # type: ignore[misc]
        def tokenize(self, text: str) -> list[str]:
            return split_tokens(text)

    scorer = RougeScorer(["rougeL"], tokenizer=AnyScript())
    seconds = []
    for count in ALTERNATIVE:
        start = time.process_time()
        for record in make_predictions(0, count):
            scorer.score(record["reference"], record["prediction"])
        seconds.append(time.process_time() - start)
    each = (seconds[1] - seconds[0]) / (ALTERNATIVE[1] - ALTERNATIVE[0])
    return {
        "measured": {str(count): round(found, 2) for count, found in zip(ALTERNATIVE, seconds, strict=True)},
        "cpu_seconds_a_record": round(each, 3),
        "extrapolated_cpu_seconds": {
            str(row["records"]): round(each * row["records"] * row["models"]) for row in scoring
        },
    }


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="scoring jobs that run at a time")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print the results and write them."""
    args = parse_args(argv)
    rows = []
    print("| records | models | seconds | CPU seconds | of one scoring | of comparing | peak MiB in all |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for count in args.records:
        with tempfile.TemporaryDirectory() as name:
            row = measure(Path(name), args.models, count, args.jobs)
        rows.append(row)
        names = ("models", "seconds", "cpu_seconds", "cpu_seconds_of_one_scoring", "cpu_seconds_of_comparing")
        print(f"| {count:,} | {' | '.join(str(row[name]) for name in names)} | {row['peak_mib_in_all']} |", flush=True)
    alternative = measure_alternative(rows)
    print(f"ROUGE-L by rouge-score's table, extrapolated: {alternative['extrapolated_cpu_seconds']} CPU seconds")
    import torch  # only now: the peak memory of a process includes that of its parent
    from machine import describe_machine

    date = datetime.now(UTC).strftime("%Y-%m-%d")
    found = {"date": date, "machine": describe_machine(torch.device("cpu")), "jobs": args.jobs, "rows": rows}
    write_json(args.out / f"scoring_{date}.json", found | {"rouge_score": alternative})


if __name__ == "__main__":
    main()
