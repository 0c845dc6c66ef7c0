"""Options of the data steps: which records are taken, what a usable answer is, and which records are held out."""

from dataclasses import dataclass
from fractions import Fraction

from distill.common.options import SEED, option


@dataclass(frozen=True)
class MixOptions:
    """Which raw records are taken."""

    grpo_fraction: Fraction = option(
        "Share of the GRPO records to take.",
        Fraction("0.7"),
        minimum=0,
        maximum=1,
        when="To set how many prompts of each source the teacher answers. Each prompt counts once.",
    )
    sft_fraction: Fraction = option(
        "Share of the SFT records to take.",
        Fraction("0.3"),
        minimum=0,
        maximum=1,
        when="Likewise. The two shares are independent; both may be 1.",
    )
    seed: int = option(
        "Seed that decides which records are taken.", 42, **SEED, when="For another selection of records."
    )


@dataclass(frozen=True)
class PromptOptions:
    """What the teacher is asked for, and what it alone sees."""

    targets: str = option(
        "Which answers of a conversation are targets: the one after its last user or tool message (`last`), or each of "
        "the assistant's turns (`all`), with the recorded turns before it as its history.",
        "last",
        choices=("last", "all"),
        when="`all` if the student should learn every turn of recorded conversations.",
    )
    teacher_prompt: str | None = option(
        "Text that stands before the system text in the teacher's prompt alone, for records without a `teacher_prompt` "
        "of their own. `{category}` is the category's name.",
        None,
        minLength=1,
        when="The student should answer as the teacher does with instructions, examples or rules that it does not see.",
    )


@dataclass(frozen=True)
class ColumnOptions:
    """Where a record has its fields."""

    columns: dict[str, str] = option(
        "With `source.path`: names of columns in the file or dataset, by the field that each of them holds, such as "
        "`{instruction: question, output: answer}`. Other fields have the name of their column.",
        {},
        when="The columns of your dataset have other names than the fields of `source.format` and "
        "`answer.label_fields`.",
    )


@dataclass(frozen=True)
class SplitOptions:
    """Which usable answers are held out."""

    val_fraction: Fraction = option(
        "Share of the records for validation.",
        Fraction("0.1"),
        minimum=0,
        exclusiveMaximum=1,
        when="0 to train without a validation loss.",
    )
    test_fraction: Fraction = option(
        "Share of the records for evaluation.",
        Fraction("0.1"),
        exclusiveMinimum=0,
        exclusiveMaximum=1,
        when="Higher for narrower confidence intervals. Records then move only between train and test.",
    )
    seed: int = option(
        "Seed that decides which records are held out.",
        42,
        **SEED,
        when="For another test set; its scores cannot be compared with earlier ones.",
    )


@dataclass(frozen=True)
class AnswerFormat:
    """What a usable answer contains, and where a raw record has its true value."""

    key: str | None = option(
        "Key of the number in the answer's JSON object. Without a key (null), any text is accepted.",
        "holding_log_delta",
        minLength=1,
        when="The key that your answers use; null for free text.",
    )
    label_fields: list[str] = option(
        "Fields of a raw record that may contain the true value; the first one present is used.",
        ["holding_log_delta", "label_log_delta", "label_delta"],
        items={"minLength": 1},
        when="The fields of your records.",
    )
