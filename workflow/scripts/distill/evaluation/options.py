"""Options of the evaluation."""

import argparse
from dataclasses import dataclass

from distill.common.options import SEED, add_options, option
from distill.evaluation.metrics import GROUPS
from distill.records.options import AnswerFormat

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


def add_scoring_options(parser: argparse.ArgumentParser) -> None:
    """Add `ScoringOptions` and `--answer-key`, "" without values, to the command line of a script that scores."""
    add_options(parser, ScoringOptions)
    add_options(parser, AnswerFormat, "answer_", only=["key"], defaults={"key": ""})
