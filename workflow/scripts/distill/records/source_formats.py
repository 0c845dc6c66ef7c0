"""Formats of raw records, values of `source.format`: the one place that says what each of them consists of.

To add a format, add an entry here, and a script that reads the raw files of a category and writes mixed records.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SourceFormat:
    """A format of raw records.

    Attributes:
        description: one sentence for the configuration reference.
        files: raw files that the script takes as `--NAME FILE`, each with the key under `source` that holds its path.
        script: name of the script that writes a category's mixed records, `--category NAME … --out FILE`.
        options: further options of the script, each with its place in the configuration, such as `mix.seed`.
        origins: values of `origin` in the mixed records.
        needs_system: whether `source.system` is required.
        has_original_answers: whether a record holds an answer that `mix_targets` can take as the target.
        has_turns: whether a record may have several turns, as `source.targets: all` requires.
        has_alpaca_targets: whether a run also writes the splits in Alpaca format.
        reads_datasets: whether its file may be a dataset on the Hugging Face hub, Parquet, Arrow or CSV, and
            `source.columns` names the columns; see SHAPES in `records/shapes.py`.
        single: what the format consists of if `source.path` is set; None for no difference.
    """

    description: str
    files: Mapping[str, str]
    script: str
    options: Mapping[str, str]
    origins: tuple[str, ...]
    needs_system: bool = False
    has_original_answers: bool = False
    has_turns: bool = False
    has_alpaca_targets: bool = False
    reads_datasets: bool = False
    single: "SourceFormat | None" = None

    @property
    def required_keys(self) -> tuple[str, ...]:
        """Keys under `source` that the format requires."""
        return (*self.files.values(), *(("system",) if self.needs_system else ()))


def describe_single(description: str, **differences: Any) -> SourceFormat:
    """Return a format whose records are in a single file or dataset, `source.path`, and all of which are used."""
    return SourceFormat(
        description=description,
        files={"records": "path"},
        script="read_records",
        options={
            "format": "source.format",
            "system": "source.system",
            "columns": "source.columns",
            "label_fields": "answer.label_fields",
        },
        reads_datasets=True,
        **({"origins": ("sft",)} | differences),
    )


SOURCE_FORMATS = {
    "messages": SourceFormat(
        description="Chat messages, mixed from GRPO and SFT records in JSONL, of which `mix` sets the shares; or with "
        "`source.path` all records of one file or dataset.",
        files={"grpo": "grpo", "sft": "sft"},
        script="mix_records",
        options={
            "grpo_fraction": "mix.grpo_fraction",
            "sft_fraction": "mix.sft_fraction",
            "seed": "mix.seed",
            "label_fields": "answer.label_fields",
            "answer_key": "answer.key",
        },
        origins=("grpo", "sft"),
        has_turns=True,
        single=describe_single("Chat messages.", has_turns=True),
    ),
    "alpaca": describe_single(
        "Questions with `instruction`, `input` and `output`; all of them are used.",
        origins=("alpaca",),
        needs_system=True,
        has_original_answers=True,
        has_alpaca_targets=True,
    ),
    "sharegpt": describe_single(
        "Conversations with `conversations`, a list of turns with `from` and `value`; all of them are used.",
        has_turns=True,
    ),
    "prompt_completion": describe_single(
        "Pairs of `prompt` and `completion`, each a text or a list of messages; all of them are used.",
        has_original_answers=True,
    ),
}
ORIGINS = tuple(dict.fromkeys(origin for entry in SOURCE_FORMATS.values() for origin in entry.origins))


def choose_format(name: str, path: str | None) -> SourceFormat | None:
    """Return the entry of a format, or that of its single file if `source.path` is set; None if it is unknown."""
    entry = SOURCE_FORMATS.get(name)
    return entry.single if entry and entry.single and path else entry
