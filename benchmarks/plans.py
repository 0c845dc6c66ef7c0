"""Measure how long Snakemake takes to plan: dry runs and status of many categories, and runs with nothing to do.

    python benchmarks/plans.py [--experiments 7x6 1000x3] [--questions 23683] [--only dry bare status nothing]

Makes the files of synthetic experiments of CATEGORIESxSTUDENTS in a temporary folder; nothing is generated or trained.
For each it measures the first dry run, a second one, which finds what the first one kept, and `make status`. A bare
Snakefile with the same jobs and files, but only strings in its rules, shows what Snakemake itself takes. A run with
nothing to do has one category with this many questions, whose files have realistic sizes. Prints a table and writes
benchmarks/results/plans_{date}.json.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "workflow/scripts"
sys.path.insert(0, str(SCRIPTS))

from distill.common.files import write_json, write_jsonl  # noqa: E402

RESULTS = Path(__file__).parent / "results"
PARTS = ("dry", "bare", "status", "nothing")
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "seqkd"},
    {"method": "forward_kl", "signal": "topk"},
    {"method": "forward_kl", "signal": "hidden"},
    {"method": "jsd"},
    {"method": "reverse_kl"},
    {"method": "tvd"},
)
ANSWER = "诸行无常，诸法无我，涅槃寂静。" * 47  # 705 characters, about 450 tokens
VOCABULARY = 150_000
FIELD = re.compile(r"^    (?P<name>input|output|log|benchmark|wildcards): (?P<value>.*)$")
CATEGORY_WILDCARD = re.compile(r"category=category_\d+")
CATEGORY = re.compile(r"(?<![^/_])category_\d+(?=[/._])")


class Job(NamedTuple):
    """A job of a dry run: its rule, and what follows `input:`, `output:`, `log:`, `benchmark:` and `wildcards:`."""

    rule: str
    fields: dict[str, list[str]]


# ---- Experiments ----


def make_model(folder: Path) -> None:
    """Write the files of a model that a plan reads, with a vocabulary of realistic size and hardly any weights."""
    folder.mkdir(parents=True)
    sizes = {"hidden_size": 3584, "vocab_size": VOCABULARY}
    config = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **sizes}
    vocabulary = {f"token{number}": number for number in range(VOCABULARY)}
    header = json.dumps({"lm_head.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    write_json(folder / "config.json", config)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": vocabulary, "merges": []}}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def make_experiment(folder: Path, categories: int, students: int) -> None:
    """Write the configuration, models and (tiny) raw records of an experiment."""
    names = [f"category_{number}" for number in range(categories)]
    for place, prefix in (("grpo", "grpo"), ("sft", "sft_train")):
        (folder / "artifacts" / place).mkdir(parents=True)
        for name in names:
            (folder / "artifacts" / place / f"{prefix}_{name}.jsonl").write_text("{}\n")
    for model in ("teacher", "student"):
        make_model(folder / "models" / model)
    config = {
        "categories": names,
        "device": "cpu",
        "teacher": {"model": "models/teacher"},
        "students": {
            f"student_{number}": {"model": "models/student", "train": {"precision": "fp32"}, **METHODS[number]}
            for number in range(students)
        },
        "evaluation": {"questions": ["What is a bank?"], "system": "Answer briefly."},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def finish_experiment(folder: Path, jobs: Sequence[Job], questions: int) -> None:
    """Write all outputs of these jobs: the answers whole, other files as holes of a realistic size."""
    answer = {"usable": True, "generated_tokens": 450, "raw_output": ANSWER, "answer": ANSWER}
    for path in (folder / name for job in jobs for name in job.fields["output"]):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name.startswith("teacher_outputs_") and path.suffix == ".jsonl":
            write_jsonl(path, (answer | {"uid": f"{number:032x}"} for number in range(questions)))
        else:
            path.touch()
            os.truncate(path, {".safetensors": 3_000_000_000, ".jsonl": 2_000 * questions}.get(path.suffix, 10_000))


# ---- The same jobs without functions ----


def parse_jobs(text: str) -> list[Job]:
    """Read the jobs of a dry run, without the one that makes nothing."""
    jobs: list[Job] = []
    for line in text.splitlines():
        if line.startswith(("rule ", "localrule ")):
            jobs.append(Job(line.split()[1].rstrip(":"), {"input": [], "log": [], "benchmark": [], "wildcards": []}))
        elif jobs and (found := FIELD.match(line)):
            jobs[-1].fields[found["name"]] = found["value"].split(", ")
    return [job for job in jobs if "output" in job.fields]


def write_bare(folder: Path, jobs: Sequence[Job], categories: int) -> Path:
    """Write a Snakefile with the same jobs and files as a plan, and return its path.

    It has a rule for each job of the first category, and for each job that is of no category.
    """
    lines = [f"CATEGORIES = [f'category_{{number}}' for number in range({categories})]", ""]
    lines += ["wildcard_constraints:", "    category=r'category_\\d+',", ""]
    made = sorted({CATEGORY.sub("{category}", path) for job in jobs for path in job.fields["output"]})
    lines += ["rule all:", f"    input: expand({made}, category=CATEGORIES)"]
    own = [job for job in jobs if "category=category_0" in job.fields["wildcards"]]
    common = [job for job in jobs if not any(map(CATEGORY_WILDCARD.match, job.fields["wildcards"]))]
    for number, job in enumerate([*own, *common]):
        patterns = {
            name: list(dict.fromkeys(CATEGORY.sub("{category}", path) for path in job.fields[name]))
            for name in ("input", "output", "log", "benchmark")
        }
        read = f"expand({patterns['input']}, category=CATEGORIES)" if job in common else str(patterns["input"])
        lines += ["", f"rule {job.rule}_{number}:", f"    input: {read}", f"    output: {patterns['output']}"]
        lines += [f"    log: {patterns['log']}", f"    benchmark: {patterns['benchmark'][0]!r}"]
        lines.append("    shell: 'touch {output}'")
    path = folder / "Snakefile"
    path.write_text("\n".join(lines) + "\n")
    return path


# ---- Measurement ----


def measure(command: Sequence[str | Path], output: Path) -> dict[str, Any]:
    """Run a command with its output in a file; return its seconds, its processor's seconds and its peak memory.

    Raises:
        RuntimeError: the command failed.
    """
    start = time.perf_counter()
    with open(output, "wb") as file:
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)  # with all processes that it has waited for
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(output.read_text(errors="replace")[-3000:])
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mib": usage.ru_maxrss // 2**10,
    }


def plan(folder: Path, *more: str) -> list[str | Path]:
    """Return the command line of a plan."""
    files = ["--configfile", folder / "config.yaml", "--directory", folder]
    return ["snakemake", "--profile", "local", *files, *more]


def measure_experiment(folder: Path, name: str, parts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the measurements of an experiment, `CATEGORIESxSTUDENTS`."""
    categories, students = map(int, name.split("x"))
    make_experiment(folder, categories, students)
    output = folder / "output.txt"
    first = measure(plan(folder, "--dry-run", "--nocolor"), output)
    jobs = parse_jobs(output.read_text())
    about = {"experiment": name, "jobs": len(jobs) + 1}
    yield about | {"what": "first dry run"} | first
    if "bare" in parts:
        bare = folder / "bare"
        bare.mkdir()
        for job in jobs:  # raw records, and files of models
            for path in (path for path in job.fields["input"] if (folder / path).exists()):
                (bare / path).parent.mkdir(parents=True, exist_ok=True)
                (bare / path).touch()
        snakefile = write_bare(bare, jobs, categories)
        command = ["snakemake", "--profile", "local", "--snakefile", snakefile, "--directory", bare]
        found = measure([*command, "--dry-run", "--nocolor"], output)
        if (count := len(parse_jobs(output.read_text()))) != len(jobs):
            raise AssertionError(f"the bare Snakefile has {count} jobs, the experiment {len(jobs)}")
        yield about | {"what": "bare Snakefile"} | found
    if "dry" in parts:
        yield about | {"what": "dry run"} | measure(plan(folder, "--dry-run", "--nocolor"), output)
    if "status" in parts:
        command = [sys.executable, SCRIPTS / "status.py", *plan(folder)[1:]]
        yield about | {"what": "status"} | measure(command, output)


def measure_nothing(folder: Path, questions: int) -> Iterator[dict[str, Any]]:
    """Yield the measurements of runs with nothing to do: with answers that no start has read, and with known ones."""
    make_experiment(folder, 1, 6)
    output = folder / "output.txt"
    measure(plan(folder, "--dry-run", "--nocolor"), output)
    jobs = parse_jobs(output.read_text())
    finish_experiment(folder, jobs, questions)
    measure(plan(folder, "--touch"), output)
    about = {"experiment": "1x6", "jobs": 0, "questions": questions}
    cache = folder / ".snakemake/stillhouse/start.json"
    for what, prepare in (
        ("first run with nothing to do", cache.unlink),
        ("run with nothing to do", lambda: None),
    ):
        yield about | {"what": what} | run_nothing(folder, output, prepare)


def run_nothing(folder: Path, output: Path, prepare: Callable[[], None]) -> dict[str, Any]:
    """Measure a run and check that it had nothing to do."""
    prepare()
    found = measure(plan(folder), output)
    if "Nothing to be done" not in output.read_text():
        raise AssertionError(output.read_text()[-3000:])
    return found


# ---- Command line ----


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="*", default=["7x6", "1000x3"], metavar="CATEGORIESxSTUDENTS")
    parser.add_argument("--questions", type=int, default=23_683, help="questions of the run with nothing to do")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    return parser.parse_args(argv)


def describe_machine() -> dict[str, Any]:
    """Describe the machine in another process: torch in this one would add to the peak memory of its children."""
    code = "import json, torch, machine; print(json.dumps(machine.describe_machine(torch.device('cpu'))))"
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(SCRIPTS), str(RESULTS.parent)]}; {code}"]
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


def compare_with_bare(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the processor's seconds of each experiment's dry run relative to those of its bare Snakefile."""
    seconds = {(row["experiment"], row["what"]): row["cpu_seconds"] for row in rows}
    bare = {experiment: found for (experiment, what), found in seconds.items() if what == "bare Snakefile"}
    return {name: round(seconds[name, "first dry run"] / found, 2) for name, found in bare.items()}


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print a row per measurement, and write all rows after each, since a whole run takes long."""
    args = parse_args(argv)
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    rows: list[dict[str, Any]] = []
    result = {"date": date, "machine": describe_machine(), "rows": rows}
    print("| experiment | jobs | | seconds | CPU seconds | peak MiB |\n| --- | ---: | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured = [measure_nothing(folder / "nothing", args.questions)] if "nothing" in args.only else []
        measured += [measure_experiment(folder / one, one, args.only) for one in args.experiments]
        for row in (row for found in measured for row in found):
            rows.append(row)
            values = [row[key] for key in ("experiment", "jobs", "what", "seconds", "cpu_seconds", "peak_mib")]
            print(f"| {' | '.join(f'{x:,}' if isinstance(x, int) else str(x) for x in values)} |", flush=True)
            write_json(RESULTS / f"plans_{date}.json", result | {"ratios": compare_with_bare(rows)})
    print(f"CPU seconds of a first dry run relative to the bare Snakefile: {compare_with_bare(rows)}")


if __name__ == "__main__":
    main()
