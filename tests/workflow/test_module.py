"""The workflow as a module of another one."""

import shutil
import subprocess

import pytest
from running import ONE_THREAD, ROOT, planned, preloaded_environment

SNAKEFILE = """
configfile: "config.yaml"

module stillhouse:
    snakefile: {snakefile!r}
    config: config
    {more}

use rule * from stillhouse as stillhouse_*

rule summarize:
    default_target: True
    input: rules.stillhouse_tabulate_scores.output.table
    output: "summary.txt"
    shell: "grep -c teacher {{input}} > {{output}}"
"""


def run(directory, *arguments, snakefile=ROOT / "workflow/Snakefile", more="", code=0):
    """Run another workflow, in the folder of `directory`, of which this one is a module; return its output."""
    (directory / "Snakefile").write_text(SNAKEFILE.format(snakefile=str(snakefile), more=more))
    threads = [ONE_THREAD[0], *(f"stillhouse_{one}" for one in ONE_THREAD[1:])]
    command = ["snakemake", "--cores", "2", *threads, *arguments]
    environment = preloaded_environment()
    done = subprocess.run(command, cwd=directory.path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_another_workflow_goes_on_from_the_finished_run(copy):
    """What is finished stays, although the rules have other names; a missing file is made again."""
    assert planned(run(copy, "--dry-run")) == [("summarize", "")]
    scores = copy / "output/evaluation/student_kd/banks.metrics.json"
    before = scores.read_bytes()
    scores.unlink()
    (copy / "output/report/metrics.csv").unlink()
    output = run(copy)
    assert "rule stillhouse_score_predictions:" in output
    assert "rule stillhouse_predict_answers:" not in output
    assert scores.read_bytes() == before
    assert int((copy / "summary.txt").read_text()) >= 3  # two categories and `all`


@pytest.mark.parametrize("more", ['prefix: "below"', 'replace_prefix: {"output/": "results/"}'])
def test_another_place_for_the_files_is_refused(fresh, tmp_path, more):
    output = run(fresh.copy(tmp_path / "run"), "--dry-run", more=more, code=1)
    assert "expected a module without prefix and replace_prefix" in output


def test_a_snakefile_without_its_scripts_is_refused(fresh, tmp_path):
    shutil.copytree(ROOT / "workflow", tmp_path / "workflow", ignore=shutil.ignore_patterns("scripts"))
    snakefile = tmp_path / "workflow/Snakefile"
    output = run(fresh.copy(tmp_path / "run"), "--dry-run", snakefile=snakefile, code=1)
    assert "expected the folder of a clone of Stillhouse" in output
