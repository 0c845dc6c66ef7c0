"""Run the workflow as a user does, with Snakemake in a process of its own, on tiny models and synthetic records."""

import functools
import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import preloaded
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "workflow/scripts"
# Folders that setting up, running or testing the project makes in a checkout.
ENVIRONMENTS_AND_CACHES = (
    ".git",
    ".venv",
    ".venv-docs",
    ".venv-vllm",
    ".venv-quantize",
    ".snakemake",
    "__pycache__",
    ".*_cache",
)
RESULTS = ("artifacts", "output", "runs", "logs", "models", "datasets", "site")

CONFIG = {
    "categories": ["banks", "households", "pension_funds"],
    "device": "cpu",
    "answer": {"key": None, "label_fields": ["holding_log_delta", "label_log_delta", "label_delta"]},
    "teacher": {
        "model": "models/teacher",
        "adapter": "models/adapters/{category}",
        "dtype": "float32",
        "generation": {"max_new_tokens": 24, "temperature": 1.0, "batch_size": 8},
    },
    "split": {"val_fraction": 0.2, "test_fraction": 0.3},
    "students": {
        name: {
            "model": "models/student",
            "method": method,
            "temperature": 2.0,
            "alpha": 0.5,
            "train": {"epochs": 4, "batch_size": 4, "gradient_accumulation_steps": 2, "precision": "fp32",
                      "learning_rate": 1.0e-3, "save_steps": 2, "gradient_checkpointing": False},
        }
        for name, method in (("student_kd", "forward_kl"), ("student_seqkd", "seqkd"))
    },
    "evaluation": {"max_new_tokens": 16, "bootstrap": 100},
}  # fmt: skip

# Settings of all runs, and the environment before any test changes it.
SETTINGS = {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
ENVIRONMENT = dict(os.environ)

# One teacher for all categories, for tests of the teacher's answers.
TEACHER = CONFIG["teacher"] | {"adapter": None}

# The rules that load a model. One thread each is enough for models this small, so that their jobs run in parallel.
LOADING = (
    "generate_answers",
    "compute_signal",
    "copy_layers",
    "train_student",
    "predict_answers",
    "answer_questions",
    "judge_answers",
    "export_model",
    "export_gguf",
)
ONE_THREAD = ["--set-threads", *(f"{rule}=1" for rule in LOADING)]


def is_generated(name):
    """Tell whether a file or folder of this name is an environment, a cache or git's own."""
    return any(fnmatch(name, pattern) for pattern in ENVIRONMENTS_AND_CACHES)


def copy_project(path):
    """Copy the project without environments, caches and the results of runs in it."""

    def find_ignored(folder, names):
        is_top = Path(folder) == ROOT
        return {name for name in names if is_generated(name) or (is_top and name in RESULTS)}

    return Path(shutil.copytree(ROOT, path, symlinks=True, ignore=find_ignored))


def environment():
    """Return the caller's environment, with this interpreter's programs first in PATH and without access to hubs."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path} | SETTINGS


@functools.cache
def start_preloaded():
    return preloaded.start(ENVIRONMENT | SETTINGS)


def preloaded_environment():
    """Return `environment` with a `python` and a `snakemake` that need no time for imports; see `preloaded`."""
    variables = environment()
    return variables | {"PATH": f"{start_preloaded()}{os.pathsep}{variables['PATH']}"}


def snakemake(*arguments, cwd=ROOT, check=True, timeout=1500):
    """Run `snakemake --profile local …` and return its output, including standard error.

    Args:
        arguments: further arguments of the command line.
        cwd: folder to run it in.
        check: expect success if True, a failure if False.
        timeout: seconds after which the run fails.
    """
    done = subprocess.run(
        ["snakemake", "--profile", "local", *map(str, arguments)],
        cwd=cwd,
        env=preloaded_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    if check:
        assert done.returncode == 0, done.stdout
    else:
        assert done.returncode != 0, done.stdout
    return done.stdout


def run_python(code, *arguments, **options):
    """Run Python code in a process of its own that can import the library, with warnings shown (-X dev)."""
    command = [sys.executable, "-X", "dev", "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True, timeout=120, **options)


def merge(base, changes):
    """Return a configuration with changes. Mappings are merged; other values are replaced."""
    both = {
        key: merge(base[key], changes[key])
        for key in changes
        if all(isinstance(x.get(key), dict) for x in (base, changes))
    }
    return {**base, **changes, **both}


def planned(output):
    """Return the jobs that a dry run lists, as sorted (rule, category) pairs."""
    from distill.plan.status import parse_dry_run

    return sorted((job.rule, job.wildcards.get("category", "")) for job in parse_dry_run(output)[0])


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


class Directory:
    """A working directory with records, models and a configuration file.

    Attributes:
        path: the directory.
        config: the configuration as a mapping.
        configfile: the file that holds it.
    """

    def __init__(self, path, config=CONFIG):
        self.path = path
        self.configfile = path / "config.yaml"
        self.configure(config)

    def __truediv__(self, name):
        return self.path / name

    def configure(self, config):
        self.config = config
        self.configfile.write_text(yaml.safe_dump(config, sort_keys=False))

    def run(self, *arguments, **options):
        """Run Snakemake in the directory; see `snakemake`."""
        return snakemake(*ONE_THREAD, "--configfile", self.configfile, "--directory", self.path, *arguments, **options)

    def planned(self, **options):
        """Return the (rule, category) pairs of a dry run, without the rule `all`."""
        return [job for job in planned(self.run("--dry-run", **options)) if job[0] != "all"]

    def copy(self, path):
        """Copy the directory. The copied files have new time stamps."""
        shutil.copytree(self.path, path, copy_function=shutil.copyfile)
        return Directory(path, self.config)


def make_records(path, grpo=30, sft=40):
    """Write synthetic records of three categories; pension_funds has no SFT file."""
    import make_demo_data

    categories = ["--categories", "banks", "households", "pension_funds"]
    make_demo_data.main(["--out", str(path), "--grpo", str(grpo), "--sft", str(sft), *categories])


def make_models(path):
    """Write a teacher, a student and an adapter for each category: tiny random models that share a tokenizer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tiny import build_model
    from transformers import AutoTokenizer

    import train_demo_tokenizer

    records = sorted(map(str, (path / "artifacts/sft").glob("*.jsonl")))
    train_demo_tokenizer.main(["--sft", *records, "--out", str(path / "models/tokenizer"), "--size", "600"])
    tokenizer = AutoTokenizer.from_pretrained(path / "models/tokenizer")
    for name, hidden, vocabulary in (("teacher", 32, 640), ("student", 16, 624)):
        build_model(vocabulary, hidden, scale=6.0).save_pretrained(path / "models" / name)
        tokenizer.save_pretrained(path / "models" / name)
    for seed, category in enumerate(("banks", "households"), start=1):
        teacher = build_model(640, 32, scale=6.0)
        torch.manual_seed(seed)
        lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(teacher, lora).save_pretrained(path / "models/adapters" / category)
