"""Plan the memory of every stage of an experiment, before anything is downloaded or loaded; `make plan` runs it.

    python workflow/scripts/plan_memory.py --profile local [--configfile FILE] [--directory DIR] [--device a100-40]

Accepts all options of Snakemake, and

    --device NAME           a100-40 | a100-80 | h100-80 | gb10-128 | cpu | the memory of another GPU, such as 24GB; by
                            default cpu if the configuration has `device: cpu`, else a100-40
    --prompt-tokens N       longest prompt; by default from max_length and max_new_tokens of the configuration
    --answer-tokens N       longest answer, likewise
    --json FILE             where the plan is written; by default artifacts/memory_plan.json, which the rules read

Runs the workflow's own code on fake tensors, which have shapes but no memory. It needs no GPU, and only the config.json
of each model: of well-known models not even that. Exit code 1 if a stage does not fit.
"""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from distill.common.errors import run_script
from distill.memory_plan.cuda_guard import load_cuda_guard
from distill.memory_plan.devices import Device, find_device
from distill.memory_plan.plan_file import PLAN_FILE, Plan, describe_stage, read_plan, write_plan
from distill.memory_plan.stage import Stage
from distill.memory_plan.table import render_plan
from distill.plan.experiment import describe_teacher
from distill.plan.schema import check_config
from distill.plan.snakemake_arguments import read_command_line
from distill.plan.stages import Lengths, StageLister


def read_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of the plan, and those of Snakemake."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--device")
    parser.add_argument("--prompt-tokens", type=int)
    parser.add_argument("--answer-tokens", type=int)
    parser.add_argument("--json", type=Path, default=PLAN_FILE)
    return parser.parse_known_args(argv)


def read_config(arguments: list[str]) -> dict[str, Any]:
    """The checked configuration of a Snakemake command line, whose working directory becomes the current one."""
    config, directory = read_command_line(arguments)
    directory.mkdir(parents=True, exist_ok=True)
    os.chdir(directory)
    return check_config(config)


def main(argv: list[str] | None = None) -> None:
    """Print the table, and write the plan."""
    arguments = sys.argv[1:] if argv is None else argv
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return
    args, others = read_arguments(arguments)
    lengths = Lengths(args.prompt_tokens, args.answer_tokens)
    config = read_config(others)
    device = find_device(args.device or ("cpu" if config["device"] == "cpu" else "a100-40"))
    if device.kind == "cuda":
        load_cuda_guard()
    from distill.plan.model_shapes import fetch_config, read_cached_config

    def read_hub(model: str) -> dict[str, Any] | None:
        return read_cached_config(model) or fetch_config(model)

    stages = list(StageLister(config, lengths, read_hub).list_stages())
    plan = make_plan([stage for stage in stages if isinstance(stage, Stage)], device, lengths, args.json)
    print(describe_teacher(config))
    print(render_plan(plan, stages, device))
    if any(stage["fits"] == "no" for stage in plan.stages):
        sys.exit(1)


def make_plan(stages: list[Stage], device: Device, lengths: Lengths, path: Path) -> Plan:
    """Make the plan, or complete the one of an earlier run; it is saved after every estimate."""
    from distill.memory_plan.make_plan import fill_plan, get_version

    logging.getLogger("distill").setLevel(logging.INFO)
    plan = Plan(device.name, (lengths.prompt, lengths.answer), get_version(Path(__file__)))
    earlier = read_plan(path)
    if earlier and (earlier.device, earlier.version) == (plan.device, plan.version):
        plan.estimates, plan.changes, plan.problems = earlier.estimates, earlier.changes, earlier.problems
    write_plan(path, plan)
    for _ in fill_plan(plan, stages, device):
        write_plan(path, plan)
    plan.stages = [entry for stage in stages if (entry := describe_stage(plan, stage, device))]
    write_plan(path, plan)
    return plan


if __name__ == "__main__":
    run_script(main)
