"""What Slurm costs a run: the demo on this machine, and on two nodes of a Slurm that is brought up on it.

    python benchmarks/cluster.py [--seconds 3] [--configfile config/demo.yaml]

Both have the same processor, and two jobs that load a model at a time: what the second takes longer is what jobs cost
(submission, polling, two more starts of Snakemake a job), and no node makes anything faster. Needs root and Slurm
(tests/slurm/up.sh). Prints a table and writes benchmarks/results/cluster_{date}.json.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow/scripts"))

from distill.files import write_json  # noqa: E402

RESULTS = Path(__file__).parent / "results"
TESTBED = ROOT / "tests/slurm"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, help="before the first look at a job; without it the profile's own")
    parser.add_argument("--configfile", default="config/demo.yaml", help="one that makes its own models, as the demo's")
    return parser.parse_args(argv)


def run_demo(folder: Path, profile: str, before: list[str], options: list[str]) -> tuple[float, str]:
    """(seconds, output) of the demo in a folder of its own."""
    command = [*before, "snakemake", "--profile", profile, *options, "--directory", str(folder)]
    subprocess.run([sys.executable, "workflow/scripts/make_demo_data.py", "--out", str(folder)], cwd=ROOT, check=True)
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(done.stdout)
    return time.monotonic() - start, done.stdout


def read_jobs(path: Path) -> list[tuple[datetime, datetime, str]]:
    """(start, end, node) of each job that Slurm wrote down, by start."""
    jobs = []
    for line in path.read_text().splitlines():
        fields = dict(pair.split("=", 1) for pair in line.split() if "=" in pair)
        start, end = (datetime.fromisoformat(fields[name]) for name in ("StartTime", "EndTime"))
        jobs.append((start, end, fields["NodeList"]))
    return sorted(jobs)


def count_idle(jobs: list[tuple[datetime, datetime, str]]) -> float:
    """Seconds between the first start and the last end in which no job ran: Snakemake had yet to see an end."""
    idle, busy_until = 0.0, jobs[0][1]
    for start, end, _ in jobs:
        idle += max(0.0, (start - busy_until).total_seconds())
        busy_until = max(busy_until, end)
    return idle


def measure_cluster(folder: Path, options: list[str]) -> dict[str, Any]:
    """The demo on the testbed."""
    bed = folder / "testbed"
    try:
        subprocess.run([TESTBED / "up.sh", bed], check=True)
        seconds, output = run_demo(folder / "cluster", "slurm", [str(bed / "in")], options)
        jobs = read_jobs(bed / "log/jobs.txt")
    finally:
        subprocess.run([TESTBED / "down.sh", bed], check=True)
    return {
        "way": "slurm",
        "seconds": round(seconds),
        "submissions": len(re.findall(r"has been submitted with SLURM jobid", output)),
        "idle_seconds": round(count_idle(jobs)),
        "job_seconds": round(sum((end - start).total_seconds() for start, end, _ in jobs)),
        "nodes": len({node for _, _, node in jobs}),
    }


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    args = parse_args(argv)
    files = ["--configfile", args.configfile]
    options = [*files, "--config", "device=auto"]  # jobs ask for a GPU, as they would on a cluster
    options += ["--slurm-init-seconds-before-status-checks", str(args.seconds)] if args.seconds else []
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # munge wants it open to everybody
        seconds, _ = run_demo(folder / "local", "local", [], files)
        rows: list[dict[str, Any]] = [{"way": "local", "seconds": round(seconds)}]
        rows.append(measure_cluster(folder, options))
    import torch
    from machine import describe_machine

    for row in rows:
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    date = datetime.now(UTC).date().isoformat()
    found = {"date": date, "machine": describe_machine(torch.device("cpu")), "options": options, "rows": rows}
    write_json(RESULTS / f"cluster_{date}.json", found)


if __name__ == "__main__":
    main()
