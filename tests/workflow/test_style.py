"""The project's own linters, and that rules and scripts belong together."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from rules import RULES, find_directive, find_rules
from running import ROOT, environment


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["snakefmt", "--check", "workflow/Snakefile", "workflow/rules"],
        pytest.param(["mypy"], marks=pytest.mark.slow),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_linters_find_nothing(command):
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_snakemake_lint(fresh):
    command = ["snakemake", "--lint", "--configfile", fresh.configfile, "--directory", fresh.path]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_script_named_in_a_rule_is_there_and_carries_its_digest():
    """job() gives both the script and its digest; rules whose code reruns nothing name them one by one."""
    scripts = re.findall(r'\*\*job\("(\w+)"\)', RULES)
    assert len(scripts) > 10
    apart = re.findall(r'\bscript=get_script\("(\w+)"\)', RULES)
    assert re.findall(r'code=Untracked\(get_code\("(\w+)"\)\)', RULES) == apart
    assert apart == ["download_model", "download_dataset", "publish_model"]
    assert len(re.findall(r"\bscript=", RULES)) == len(apart)
    for name in scripts + apart:
        assert (ROOT / "workflow/scripts" / f"{name}.py").is_file()


def test_every_rule_that_does_work_is_whole_and_named_as_its_script():
    """A rule that specializes another one has files of its own, and inherits conda and resources."""
    rules = find_rules()
    assert len(rules) > 20
    for name, (text, _) in rules.items():
        is_service = name == "serve_teacher"  # Snakemake ends it, and would wait for its benchmark in vain
        for directive in ("output", "log", *([] if is_service else ["benchmark"])):
            assert f"    {directive}:" in text, (name, directive)
        for directive in ("resources", "conda", "shell"):
            assert find_directive(name, directive), (name, directive)
        if name not in ("share_base_answers", "export_gguf", "export_compressed"):  # a copy; another rule's script
            script = "experiment.get_source_format(config).script" if name == "mix_records" else f'"{name}"'
            assert re.search(rf"(\*\*job|get_script)\({re.escape(script)}\)", text), name


def test_helpers_stay_small_and_import_no_torch():
    common = (ROOT / "workflow/rules/common.smk").read_text()
    assert len(common.splitlines()) < 200
    names = "command_lines, experiment, job_resources, prune_cache, schema, signals, status"
    code = f"import sys; from distill.plan import {names}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "workflow/scripts", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "name", ["mix_records", "read_records", "make_prompts", "gather_answers", "split_answers", "score_predictions"]
)
def test_data_steps_import_no_torch(name):
    code = f"import sys, {name}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "workflow/scripts", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_cache_and_teacher_import_no_torch():
    names = "distill.generation.answer_cache, distill.plan.prune_cache, distill.teacher.generate_answers"
    code = f"import sys, {names}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "workflow/scripts", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_scripts_show_their_help():
    for script in sorted((ROOT / "workflow/scripts").glob("*.py")):
        done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert Path(script).name in done.stdout
