"""Options of the evaluation."""

import argparse
from dataclasses import dataclass
from importlib.util import find_spec

from distill.common.options import SEED, add_options, option
from distill.evaluation.metrics import GROUPS
from distill.records.options import AnswerFormat

HARNESS = "lm_eval"  # package of lm-evaluation-harness
TOKENIZERS = ("13a", "intl", "zh", "char", "none")


@dataclass(frozen=True)
class ScoringOptions:
    """What is computed from a model's answers."""

    metrics: list[str] = option(
        "Groups of metrics to compute.",
        ["bleu", "rouge", "ppl", "answer"],
        choices=GROUPS,
        minItems=1,
        when="Leave out `ppl` to save a forward pass over the test set.",
    )
    tokenize: str = option(
        "Tokenizer of sacreBLEU.", "13a", choices=TOKENIZERS, when="`zh` or `char` for Chinese text."
    )
    bootstrap: int = option(
        "Bootstrap resamples for the 95 % confidence intervals; 0 computes none.",
        1000,
        minimum=0,
        when="Fewer for speed.",
    )
    seed: int = option("Seed of the bootstrap and of sampled answers.", 42, **SEED)


@dataclass(frozen=True)
class TaskOptions:
    """Benchmarks on which the models are evaluated beside their test split."""

    tasks: list[str] = option(
        "Tasks and groups of tasks of lm-evaluation-harness on which the teacher and all students are evaluated. "
        "Needs the package lm_eval (`make setup-tasks`).",
        [],
        items={"minLength": 1},
        when="To see what distillation does to abilities that the records do not cover, for example "
        "`[arc_easy, hellaswag]`.",
    )
    tasks_path: str | None = option(
        "Folder with task files of your own in the YAML format of lm-evaluation-harness, which may run Python code.",
        None,
        minLength=1,
        when="Your tasks are not among those of lm-evaluation-harness, or compute nodes cannot reach the hub.",
    )
    tasks_limit: int | None = option(
        "Documents of each task, the first ones; null takes all.", None, minimum=1, when="To try out a task."
    )
    tasks_fewshot: int | None = option(
        "Examples before each question; null takes the number of each task.",
        None,
        minimum=0,
        when="To compare with published scores.",
    )
    tasks_chat_template: bool = option(
        "Ask the questions as user messages of the model's chat template instead of plain text.",
        False,
        when="For tasks that generate answers, with models that were trained on conversations only.",
    )


def find_missing_harness() -> str | None:
    """Return a sentence about the package that tasks need, if this environment lacks it; None otherwise."""
    if find_spec(HARNESS) is not None:
        return None
    return f"evaluation.tasks: expected the package {HARNESS}, which is not installed: run `make setup-tasks`"


def add_scoring_options(parser: argparse.ArgumentParser) -> None:
    """Add `ScoringOptions` and `--answer-key`, "" without values, to the command line of a script that scores."""
    add_options(parser, ScoringOptions)
    add_options(parser, AnswerFormat, "answer_", only=["key"], defaults={"key": ""})
