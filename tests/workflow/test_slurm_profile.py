"""What the profile slurm would submit, from dry runs: they need no Slurm."""

import re
import subprocess

import pytest
import yaml
from running import ROOT, environment

import make_demo_data

GROUPS = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())["groups"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """The dry run of config/config.yaml, whose seven categories all have records."""
    path = tmp_path_factory.mktemp("seven")
    categories = yaml.safe_load((ROOT / "config/config.yaml").read_text())["categories"]
    make_demo_data.main(["--out", str(path), "--grpo", "4", "--sft", "4", "--categories", *categories, "--without-sft"])
    command = ["snakemake", "--profile", "slurm", "--directory", str(path), "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_seven_categories_are_at_most_forty_submissions(plan):
    groups = re.findall(r"Group job (\w+) ", plan)
    single = re.findall(r"^rule (\w+):$", plan, flags=re.MULTILINE)
    assert len(groups) == len(set(groups)) == 3 * 7 + 2  # prepare, collect, evaluate; evaluate_all, report
    assert sorted(set(single)) == ["all", "generate_answers", "train_student"]
    assert len(groups) + len(single) - 1 <= 40


def test_jobs_that_load_a_model_ask_for_a_gpu_and_others_for_none(plan):
    jobs = re.findall(r"^ *rule (\w+):\n(?:.+\n)*? *resources: (.*)$", plan, flags=re.MULTILINE)
    asking = {rule for rule, resources in jobs if re.search(r"\bgpu=1\b", resources)}
    assert asking == {"generate_answers", "train_student", "predict_answers"}
    assert {"mix_records", "split_answers", "score_predictions", "tabulate_scores"} <= {rule for rule, _ in jobs}
    assert all("--signal=TERM@300" in resources for _, resources in jobs if "<TBD>" in resources)


def test_every_rule_that_is_grouped_exists():
    rules = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    known = set(re.findall(r"^rule (\w+):", rules, flags=re.MULTILINE))
    assert {line.split("=")[0] for line in GROUPS} <= known
