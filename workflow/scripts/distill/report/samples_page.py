"""The HTML page of samples: how students' answers to validation prompts change while they train.

A card per prompt has the reference and a column per student with its answer at each validation. As on the page of
answers side by side, texts are data: they are escaped, and the page runs no script and loads nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from distill.common.errors import InputError, raise_problems
from distill.common.files import read_jsonl
from distill.evaluation.prediction_files import Check, find_problems, is_count, is_string
from distill.evaluation.score_table import order_categories
from distill.records.conversations import format_turns
from distill.records.splits import read_chat
from distill.report.answers_page import (
    REFERENCE,
    STYLE,
    TEMPLATES,
    Answer,
    Column,
    format_tokens,
    order_columns,
    render_template,
    show,
)

PARTS = (TEMPLATES / "samples.html.j2", STYLE, TEMPLATES / "samples.css")
FIELDS: dict[str, Check] = {
    "step": ("a whole number from 0", is_count),
    "uid": ("a string", is_string),
    "text": ("a string", is_string),
    "finished": ("true or false", lambda value: isinstance(value, bool)),
    "tokens": ("a whole number from 0", is_count),
}

Record = dict[str, Any]


class Samples(NamedTuple):
    """The samples of one training, in the order of its validations."""

    student: str
    category: str
    lines: list[Record]


class Track(NamedTuple):
    """A column of a card: the reference, or the answers of a student over the steps."""

    column: Column
    answers: list[Answer]


class Card(NamedTuple):
    """One prompt with its tracks."""

    anchor: str
    system: str
    prompt: str
    tracks: list[Track]


def read_samples(path: str | PathLike[str]) -> Samples:
    """Read the samples of a training; student and category come from its path `…/{student}/{category}/samples.jsonl`.

    Raises:
        InputError: a field is missing or has another type; names file and line.
    """
    lines = list(read_jsonl(path))
    raise_problems(find_problems(path, lines, FIELDS), "samples")
    folder = Path(path).absolute().parent
    return Samples(folder.parent.name, folder.name, [line for _, line in lines])


def read_references(paths: Iterable[str | PathLike[str]]) -> dict[str, Record]:
    """The records of validation splits by uid; of several with the same uid the first, as trainings choose it."""
    found: dict[str, Record] = {}
    for path in paths:
        for _, record in read_jsonl(path):
            found.setdefault(record["uid"], record)
    return found


def build_track(column: Column, lines: Iterable[Record]) -> Track:
    """The answers of a student to one prompt."""
    answers = []
    for line in lines:
        warnings = [] if line["finished"] else ["truncated"]
        facts = [f"step {line['step']:,}", format_tokens(line["tokens"])]
        answers.append(Answer(column, show(line["text"]), [], warnings, facts))
    return Track(column, answers)


def build_cards(
    category: str, trainings: Sequence[Samples], columns: Sequence[Column], references: Mapping[str, Record]
) -> list[Card]:
    """The cards of a category, in the order in which the students answered.

    Raises:
        InputError: a prompt is not in the validation splits.
    """
    by_student = {one.student: one for one in trainings}
    cards = []
    for number, uid in enumerate(dict.fromkeys(line["uid"] for one in trainings for line in one.lines), start=1):
        if uid not in references:
            raise InputError(f"samples of {category}: expected a uid of the validation splits, found {uid}")
        fields, answer = read_chat(references[uid])
        is_cut = references[uid]["finish_reason"] == "length"
        tracks = []
        for column in columns:
            if column.key == REFERENCE:
                tracks.append(Track(column, [Answer(column, show(answer), [], ["truncated"] if is_cut else [], [])]))
            elif lines := [line for line in by_student[column.key].lines if line["uid"] == uid]:
                tracks.append(build_track(column, lines))
        cards.append(Card(f"{category}-{number}", show(fields["system"]), show(format_turns(fields)), tracks))
    return cards


def render_samples(samples: Sequence[Samples], references: Mapping[str, Record]) -> str:
    """The page as HTML.

    Args:
        samples: from `read_samples`.
        references: from `read_references`.
    """
    columns = order_columns(list(dict.fromkeys(one.student for one in samples)))
    groups = []
    for category in order_categories(one.category for one in samples):
        trainings = [one for one in samples if one.category == category]
        students = {one.student for one in trainings}
        shown = [column for column in columns if column.key == REFERENCE or column.key in students]
        if cards := build_cards(category, trainings, shown, references):
            groups.append((category, cards))
    style = "".join(path.read_text(encoding="utf-8") for path in PARTS[1:])
    return render_template(PARTS[0].name, style, groups=groups)
