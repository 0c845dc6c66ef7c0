"""Measure the overhead of Slurm: run the demo directly, and on a two-node Slurm cluster started on this machine.

    python benchmarks/cluster.py [--seconds 3] [--configfile config/demo.yaml]

The cluster runs use the profile as it is, and again with other delays before the first status check of a job. All
runs share one processor and load at most two models at a time, so the additional time is the overhead of jobs:
submission, polling, and two further starts of Snakemake per job. Needs root and Slurm (tests/slurm/up.sh). Prints a
table and writes benchmarks/results/cluster_{date}.json.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow/scripts"))

from distill.common.files import write_json  # noqa: E402

RESULTS = Path(__file__).parent / "results"
TESTBED = ROOT / "tests/slurm"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=int, nargs="*", default=[3], help="delays before the first status check of a job"
    )
    parser.add_argument(
        "--configfile", default="config/demo.yaml", help="a configuration that makes its own models, like the demo's"
    )
    parser.add_argument("--keep", type=Path, help="new folder that keeps the runs")
    return parser.parse_args(argv)


def run_demo(folder: Path, profile: str, before: list[str], options: list[str]) -> tuple[float, str]:
    """Run the demo in a new folder and return (seconds, output)."""
    command = [*before, "snakemake", "--profile", profile, *options, "--directory", str(folder)]
    subprocess.run([sys.executable, "workflow/scripts/make_demo_data.py", "--out", str(folder)], cwd=ROOT, check=True)
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(done.stdout)
    return time.monotonic() - start, done.stdout


class Job(NamedTuple):
    """A job in Slurm's accounting."""

    number: str
    start: datetime
    end: datetime
    node: str


def read_jobs(path: Path) -> list[Job]:
    """Read all jobs, sorted by start."""
    jobs = []
    for line in path.read_text().splitlines():
        fields = dict(pair.split("=", 1) for pair in line.split() if "=" in pair)
        start, end = (datetime.fromisoformat(fields[name]) for name in ("StartTime", "EndTime"))
        jobs.append(Job(fields["JobId"], start, end, fields["NodeList"]))
    return sorted(jobs, key=lambda job: job.start)


def count_idle(jobs: list[Job]) -> float:
    """Sum the seconds without a running job, in which Snakemake had not yet noticed the end of the last one."""
    idle, busy_until = 0.0, jobs[0].start
    for job in jobs:
        idle += max(0.0, (job.start - busy_until).total_seconds())
        busy_until = max(busy_until, job.end)
    return idle


def find_seen(output: str) -> dict[str, datetime]:
    """Find when Snakemake noticed the end of each Slurm job, by job number; a group's jobs end together."""
    first = dict(re.findall(r"Group job (\w+) \(jobs.*?^ +jobid: (\d+)$", output, flags=re.DOTALL | re.MULTILINE))
    finished = {
        job: datetime.strptime(time, "%a %b %d %H:%M:%S %Y")
        for time, job in re.findall(r"^\[(.+)\]\nFinished jobid: (\d+) ", output, flags=re.MULTILINE)
    }
    seen = {}
    for job, number, log in re.findall(r"Job (\S+) has been submitted with SLURM jobid (\d+) \(log: (.+)\)\.", output):
        if not job.isdigit():
            folder = re.search(r"/slurm_logs/group_([\w.]+)/", log)[1]  # GROUP_RULES
            job = first[max((name for name in first if folder.startswith(f"{name}_")), key=len)]
        seen[number] = finished[job]
    return seen


def measure_cluster(folder: Path, way: str, options: list[str]) -> dict[str, Any]:
    """Run the demo on a new two-node cluster and measure it."""
    bed = folder / f"testbed_{way}"
    try:
        subprocess.run([TESTBED / "up.sh", bed], check=True)
        seconds, output = run_demo(folder / way, "slurm", [str(bed / "in")], options)
        jobs = read_jobs(bed / "log/jobs.txt")
    finally:
        subprocess.run([TESTBED / "down.sh", bed], check=True)
    seen = find_seen(output)
    delays = [(seen[job.number] - job.end).total_seconds() for job in jobs]
    return {
        "way": way,
        "seconds": round(seconds),
        "submissions": len(seen),
        "no_job_seconds": round(count_idle(jobs)),
        "until_seen_median_seconds": round(statistics.median(delays)),
        "until_seen_max_seconds": round(max(delays)),
        "job_seconds": round(sum((job.end - job.start).total_seconds() for job in jobs)),
        "nodes": len({job.node for job in jobs}),
    }


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print the results and write them."""
    args = parse_args(argv)
    files = ["--configfile", args.configfile]
    options = [*files, "--config", "device=auto"]  # jobs request a GPU, as on a real cluster
    ways: dict[str, list[str]] = {"profile": []}
    ways |= {
        f"{seconds}_seconds": ["--slurm-init-seconds-before-status-checks", str(seconds)] for seconds in args.seconds
    }
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as name:
        folder = args.keep.resolve() if args.keep else Path(name)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)  # munge needs access for everyone
        seconds, _ = run_demo(folder / "local", "local", [], files)
        rows: list[dict[str, Any]] = [{"way": "local", "seconds": round(seconds)}]
        rows += [measure_cluster(folder, way, [*options, *more]) for way, more in ways.items()]
    import torch
    from machine import describe_machine

    for row in rows:
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    date = datetime.now(UTC).date().isoformat()
    found = {"date": date, "machine": describe_machine(torch.device("cpu")), "options": options, "rows": rows}
    write_json(RESULTS / f"cluster_{date}.json", found)


if __name__ == "__main__":
    main()
