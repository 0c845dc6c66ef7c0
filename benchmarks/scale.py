"""Measure each step of a workflow by the number of questions, with tiny models: what is not a model's own work.

    python benchmarks/scale.py [--records 23683 100000] [--epochs 0.1] [--work FOLDER]

Makes questions and answers of 400 to 1,000 Chinese characters, puts the teacher's answers into the answer cache, and
runs Snakemake on them: two shards of answers, a cached signal, two students, predictions, scores, comparisons and the
report. Then 5 questions are changed, 100 added and 10 removed, and it runs again. The models are those of the demo with
random weights; they ask and train as real ones do. Training takes most of the time; with --epochs 0.1 it reads all
records and makes a tenth of the steps. Each count is compared with a tenth of it. Prints
tables and writes benchmarks/results/scale_{date}.json.

A step's seconds and memory are those of its own processes: the jobs find `python` as a program that measures another.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from plans import Job, describe_machine, measure, parse_jobs, plan
from scoring import Writer

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "workflow/scripts"
sys.path.insert(0, str(SCRIPTS))

from distill.common.files import read_jsonl, write_json  # noqa: E402
from distill.generation.answer_cache import CacheWriter  # noqa: E402

RESULTS = Path(__file__).parent / "results"
CATEGORY = "questions"
SYSTEM = "请用清楚的现代汉语准确地回答问题。"
CHANGED, ADDED, REMOVED = 5, 100, 10
SHIM = """#!{python} -SE
# Runs another Python, and appends to a file its seconds, its peak memory and its rule, from the name of its log.
import json, os, sys, time
start = time.perf_counter()
child = os.posix_spawn({python!r}, [{python!r}, *sys.argv[1:]], os.environ)
_, status, usage = os.wait4(child, 0)
rule = os.readlink("/proc/self/fd/2").partition("/logs/")[2].partition("/")[0].partition(".")[0]
found = {{"rule": rule, "seconds": time.perf_counter() - start, "cpu_seconds": usage.ru_utime + usage.ru_stime,
         "peak_mib": usage.ru_maxrss / 2**10}}
with open({log!r}, "a") as file:
    file.write(json.dumps(found) + "\\n")
sys.exit(os.waitstatus_to_exitcode(status) & 255)
"""
TRAIN = {"epochs": 1, "batch_size": 16, "gradient_accumulation_steps": 4, "learning_rate": 1.0e-3, "precision": "fp32"}
CONFIG = {
    "categories": [CATEGORY],
    "device": "cpu",
    "source": {"format": "alpaca", "path": "data/{category}.json", "system": SYSTEM},
    "mix_targets": {"teacher": 0.7, "original": 0.3},
    "teacher": {
        "model": "models/teacher",
        "dtype": "float32",
        "generation": {"max_new_tokens": 64, "temperature": 0.7, "batch_size": 64},
        "shards": 2,
    },
    "answer": None,
    "split": {"val_fraction": 0.1, "test_fraction": 0.1},
    "students": {
        "student_topk": {"model": "models/student", "signal": "topk", "train": TRAIN},
        "student_seqkd": {"model": "models/student", "method": "seqkd", "train": TRAIN},
    },
    "evaluation": {
        "metrics": ["bleu", "rouge", "chrf", "ppl", "shape", "fdistill"],
        "tokenize": "zh",
        "max_new_tokens": 64,
        "batch_size": 64,
        "questions": ["什么是四圣谛？", "什么是八正道？"],
    },
}

Row = dict[str, Any]


# ---- Questions, answers and models ----


class Texts:
    """Questions with an answer each; the same seed gives the same ones."""

    def __init__(self, seed: int = 1):
        self.writer, self.count = Writer(seed), 0

    def draw(self, count: int) -> list[dict[str, str]]:
        """Draw records in Alpaca format."""
        self.count += count
        first = self.count - count
        return [
            {
                "instruction": f"问题{number}：" + "".join(self.writer.draw(20)),
                "input": "",
                "output": "".join(self.writer.write()),
            }
            for number in range(first, first + count)
        ]


def write_questions(folder: Path, records: Sequence[dict[str, str]]) -> None:
    """Write the file of questions."""
    (folder / "data").mkdir(exist_ok=True)
    write_json(folder / f"data/{CATEGORY}.json", list(records))


def make_models(folder: Path) -> None:
    """Write the demo's models with random weights and a tokenizer for the texts.

    It has a process of its own, since the peak memory of a process includes that of its parent.
    """
    from distill.demo.models import build_model, save_model
    from distill.demo.options import DemoStudent, DemoTeacher
    from distill.demo.tokenizer import train_tokenizer

    tokenizer = train_tokenizer((one["instruction"] + one["output"] for one in Texts().draw(500)), size=4096)
    for name, sizes in (("teacher", DemoTeacher(vocab_size=4160)), ("student", DemoStudent(vocab_size=4128))):
        save_model(build_model(tokenizer, sizes, seed=len(name)), tokenizer, folder / "models" / name)


def fill_cache(folder: Path, texts: Texts) -> None:
    """Put an answer of realistic length to each question into the answer cache.

    The teacher's folder in the cache is the one that Snakemake has made for its answer to a single question.
    """
    (description,) = (folder / "artifacts/cache/teacher").glob("*/teacher.json")
    prompts = folder / f"artifacts/distill_data/raw/{CATEGORY}_teacher_prompts_base.jsonl"
    with CacheWriter(description.parent) as writer:
        for _, prompt in read_jsonl(prompts):
            answer = "".join(texts.writer.write())
            counts = {"generated_tokens": len(answer) // 2, "prompt_tokens": 40}
            writer.add([{"uid": prompt["uid"], "sample": 0, "raw_output": answer, "finish_reason": "stop"} | counts])


# ---- Measurement ----


class Run:
    """A working directory whose jobs are measured.

    Args:
        folder: the working directory, made here.
        epochs: epochs of each training.
    """

    def __init__(self, folder: Path, epochs: float):
        folder.mkdir(parents=True)
        self.folder, self.log, self.output = folder, folder / "measured.jsonl", folder / "output.txt"
        programs = folder / "bin"
        programs.mkdir()
        (programs / "python").write_text(SHIM.format(python=sys.executable, log=str(self.log)))
        (programs / "python").chmod(0o755)
        config = copy.deepcopy(CONFIG)
        for student in config["students"].values():
            student["train"]["epochs"] = epochs
        self.path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))

    def call(self, *options: str) -> dict[str, Any]:
        """Run Snakemake; return its seconds, CPU seconds and peak memory, those of its jobs included."""
        path = os.environ["PATH"]
        os.environ["PATH"] = self.path
        try:
            # No job uses a GPU: as many trainings and predictions as cores run at a time.
            return measure(plan(self.folder, "--resources", f"gpu={os.cpu_count()}", *options), self.output)
        finally:
            os.environ["PATH"] = path

    def take_jobs(self) -> dict[str, Row]:
        """Return by rule what the jobs since the last call took."""
        found: dict[str, Row] = {}
        for _, one in read_jsonl(self.log):
            row = found.setdefault(one["rule"], {"jobs": 0, "seconds": 0.0, "cpu_seconds": 0.0, "peak_mib": 0.0})
            row["jobs"] += 1
            row["seconds"] += one["seconds"]
            row["cpu_seconds"] += one["cpu_seconds"]
            row["peak_mib"] = max(row["peak_mib"], one["peak_mib"])
        self.log.unlink()
        return {rule: {name: round(value, 1) for name, value in row.items()} for rule, row in found.items()}

    def count_bytes(self, jobs: Iterable[Job]) -> dict[str, int]:
        """Return the bytes of the outputs of jobs by rule."""
        found: dict[str, int] = defaultdict(int)
        for job in jobs:
            places = {self.folder / path for path in job.fields["output"]}
            if job.rule == "compute_signal":  # its outputs stand beside the data, which a failed job must not lose
                places = {place.parent for place in places}
            for place in places:
                files = place.rglob("*") if place.is_dir() else [place]
                found[job.rule] += sum(file.stat().st_size for file in files if file.is_file())
        return dict(found)

    def take_rows(self, jobs: Sequence[Job]) -> list[Row]:
        """Return a row for each rule of these jobs that has run, in their order."""
        found, sizes = self.take_jobs(), self.count_bytes(jobs)
        rules = list(dict.fromkeys(job.rule for job in jobs if job.rule in found))
        return [{"step": rule, **found[rule], "bytes": sizes.get(rule, 0)} for rule in rules]


def measure_count(folder: Path, count: int, epochs: float) -> dict[str, list[Row]]:
    """Run the workflow on this many questions, and again on changed ones; return the rows of both tables."""
    texts, run = Texts(), Run(folder, epochs)
    records = texts.draw(count)
    subprocess.run([sys.executable, __file__, "--make-models", folder], check=True)
    write_questions(folder, records[:1])
    run.call("--until", "generate_answers")
    run.log.unlink()
    write_questions(folder, records)
    planned = run.call("--dry-run", "--nocolor")
    jobs = parse_jobs(run.output.read_text())
    run.call("--until", "make_prompts")
    rows = [{"step": "first dry run", **planned}, *run.take_rows(jobs)]
    fill_cache(folder, texts)
    whole = run.call()
    rows += [*run.take_rows(jobs), {"step": "all from the answers on", **whole}]
    rows.append({"step": "run with nothing to do", **run.call()})
    if "Nothing to be done" not in run.output.read_text():
        raise AssertionError(run.output.read_text()[-3000:])
    options = ["--configfile", folder / "config.yaml", "--directory", folder]
    rows.append(
        {"step": "make status", **measure([sys.executable, SCRIPTS / "status.py", *plan(folder)[1:]], run.output)}
    )
    rows.append({"step": "make disk", **measure([sys.executable, SCRIPTS / "disk.py", *options], run.output)})
    return {"steps": rows, "changes": measure_changes(run, records, texts)}


def change(records: Sequence[dict[str, str]], texts: Texts) -> list[dict[str, str]]:
    """Change 5 questions, remove 10 and add 100, all over the file."""
    step = len(records) // (CHANGED + REMOVED + 1)
    places = [step * place for place in range(1, CHANGED + REMOVED + 1)]
    removed = set(places[CHANGED:])
    new = dict(zip(places[:CHANGED], texts.draw(CHANGED), strict=True))
    return [new.get(n, one) for n, one in enumerate(records) if n not in removed] + texts.draw(ADDED)


def read_targets(folder: Path) -> set[str]:
    """Return the prompts and answers that the students learn, the teacher's and the file's own, as lines."""
    processed = folder / "artifacts/distill_data/processed" / CATEGORY
    records = (record for split in ("train", "val") for _, record in read_jsonl(processed / f"{split}.jsonl"))
    return {json.dumps(record["messages"]) for record in records}


def measure_changes(run: Run, records: Sequence[dict[str, str]], texts: Texts) -> list[Row]:
    """Run the workflow on changed questions; return what it asked and computed anew, and a row for each rule.

    Raises:
        AssertionError: other questions were asked, or other signals computed, than those that changed.
    """
    before = read_targets(run.folder)
    write_questions(run.folder, change(records, texts))
    planned = run.call("--dry-run", "--nocolor")
    jobs = parse_jobs(run.output.read_text())
    whole = run.call()
    raw = run.folder / "artifacts/distill_data"
    asked = json.loads((raw / f"raw/teacher_outputs_{CATEGORY}.stats.json").read_text())["generated"]
    (path,) = raw.glob(f"teacher_signal/{CATEGORY}/*/stats.json")
    computed, expected = json.loads(path.read_text())["computed"], len(read_targets(run.folder) - before)
    if (asked, computed) != (CHANGED + ADDED, expected):
        raise AssertionError(f"asked {asked}, expected {CHANGED + ADDED}; computed {computed}, expected {expected}")
    about = {"asked": asked, "computed": computed}
    return [{"step": "dry run", **planned}, *run.take_rows(jobs), {"step": "whole run", **about, **whole}]


# ---- Tables ----


def add_growth(rows: Sequence[Row], tenth: Sequence[Row]) -> list[Row]:
    """Add to each row its CPU seconds relative to those with a tenth of the questions."""
    before = {row["step"]: row["cpu_seconds"] for row in tenth}
    return [row | {"growth": round(row["cpu_seconds"] / max(before[row["step"]], 0.01), 1)} for row in rows]


def format_rows(rows: Sequence[Row]) -> str:
    """Format rows as a table in Markdown: the seconds of all jobs of a step, and the memory of the largest."""
    lines = [
        "| step | jobs | seconds | CPU seconds | peak MiB | MB written | × N/10 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        size = f"{row['bytes'] / 1e6:,.1f}" if "bytes" in row else ""
        cells = [row["step"].replace("_", " "), str(row.get("jobs", "")), f"{row['seconds']:,.1f}"]
        cells += [f"{row['cpu_seconds']:,.1f}", f"{row['peak_mib']:,.0f}", size, str(row.get("growth", ""))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# ---- Command line ----


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[23_683, 100_000], help="numbers of questions")
    parser.add_argument("--epochs", type=float, default=1.0, help="epochs of each training")
    parser.add_argument("--work", type=Path, help="folder to keep the runs in; a temporary one otherwise")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument(
        "--growth", action=argparse.BooleanOptionalAction, default=True, help="compare with a tenth of the questions"
    )
    parser.add_argument("--make-models", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if min(args.records) // (10 if args.growth else 1) <= CHANGED + REMOVED:
        parser.error(f"--records: expected more than {CHANGED + REMOVED} questions, in a tenth of them too")
    return args


def measure_all(args: argparse.Namespace, work: Path) -> None:
    """Measure each count, and a tenth of it; print tables, and write all results after each count."""
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    results: list[Row] = []
    for count in args.records:
        result: Row = {"questions": count}
        if args.growth:
            result["tenth"] = measure_count(work / str(count // 10), count // 10, args.epochs)
        tables = measure_count(work / str(count), count, args.epochs)
        if args.growth:
            tables = {name: add_growth(rows, result["tenth"][name]) for name, rows in tables.items()}
        results.append(result | tables)
        found = {"date": date, "machine": describe_machine(), "epochs": args.epochs, "results": results}
        write_json(args.out / f"scale_{date}.json", found)
        changes = f"{CHANGED} changed, {ADDED} added, {REMOVED} removed"
        steps, changed = (format_rows(tables[name]) for name in ("steps", "changes"))
        print(f"{count:,} questions\n\n{steps}\n\n{changes}\n\n{changed}\n", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    args = parse_args(argv)
    if args.make_models:
        make_models(args.make_models)
    elif args.work:
        measure_all(args, args.work)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure_all(args, Path(folder))


if __name__ == "__main__":
    main()
