"""Formats of raw records, values of `source.format`: the one place that says what each of them consists of.

To add a format, add an entry here, a script that writes mixed records, and a rule of the script's name in
`rules/RULE.smk`.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SourceFormat:
    """A format of raw records.

    Attributes:
        description: one sentence for the configuration reference.
        files: inputs of the rule, each with the key under `source` that holds the path of a category's raw file.
        rule: name of the rule, its script and its file in rules/ that turn raw records into mixed records.
        origins: values of `origin` in the mixed records.
        needs_system: whether `source.system` is required.
        has_original_answers: whether a record holds an answer that `mix_targets` can take as the target.
        has_alpaca_targets: whether a run also writes the splits in Alpaca format.
    """

    description: str
    files: Mapping[str, str]
    rule: str
    origins: tuple[str, ...]
    needs_system: bool = False
    has_original_answers: bool = False
    has_alpaca_targets: bool = False

    @property
    def required_keys(self) -> tuple[str, ...]:
        """Keys under `source` that the format requires."""
        return (*self.files.values(), *(("system",) if self.needs_system else ()))


SOURCE_FORMATS = {
    "messages": SourceFormat(
        description="Chat messages in JSONL, mixed from GRPO and SFT records; `mix` sets the share of each.",
        files={"grpo": "grpo", "sft": "sft"},
        rule="mix_records",
        origins=("grpo", "sft"),
    ),
    "alpaca": SourceFormat(
        description="A JSON array or JSONL of objects with `instruction`, `input` and `output`; all of them are used.",
        files={"questions": "path"},
        rule="read_alpaca",
        origins=("alpaca",),
        needs_system=True,
        has_original_answers=True,
        has_alpaca_targets=True,
    ),
}
ORIGINS = tuple(origin for source_format in SOURCE_FORMATS.values() for origin in source_format.origins)
