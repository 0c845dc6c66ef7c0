"""Formats of raw records, values of `source.format`: the one place that says what each of them consists of.

To add a format, add an entry here, and a script that reads the raw files of a category and writes mixed records.
"""

from collections.abc import Mapping
from dataclasses import dataclass


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

    @property
    def required_keys(self) -> tuple[str, ...]:
        """Keys under `source` that the format requires."""
        return (*self.files.values(), *(("system",) if self.needs_system else ()))


SOURCE_FORMATS = {
    "messages": SourceFormat(
        description="Chat messages in JSONL, mixed from GRPO and SFT records; `mix` sets the share of each.",
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
    ),
    "alpaca": SourceFormat(
        description="A JSON array or JSONL of objects with `instruction`, `input` and `output`; all of them are used.",
        files={"questions": "path"},
        script="read_alpaca",
        options={"system": "source.system", "label_fields": "answer.label_fields"},
        origins=("alpaca",),
        needs_system=True,
        has_original_answers=True,
        has_alpaca_targets=True,
    ),
}
ORIGINS = tuple(origin for source_format in SOURCE_FORMATS.values() for origin in source_format.origins)
