"""The HTML page of near-duplicate prompts: counts by category, then pairs of texts with their differences marked.

As on the page of answers side by side, texts are data: they are escaped, and the page runs no script and loads nothing.
"""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from distill.common.errors import InputError
from distill.evaluation.score_table import order_categories
from distill.records.near_duplicate_options import COLUMNS
from distill.report.answers_page import STYLE, TEMPLATES, render_template, show

PARTS = (TEMPLATES / "near_duplicates.html.j2", STYLE, TEMPLATES / "near_duplicates.css")
MOST_PAIRS = 50  # shown for each category and collection
LONGEST_MARKED = 4000  # characters of texts whose differences are marked, which takes quadratic time
COUNTS = (
    *("category", "threshold", "shingle_size", "action", "prompts"),
    *("near_duplicates", "dropped", "incomplete", "uids"),
)
SPLITS = {"test": "test prompt", "val": "validation prompt", "train": "earlier training prompt"}

Counts = dict[str, Any]


class Part(NamedTuple):
    """A piece of a text, and whether the other text has it, too."""

    text: str
    is_common: bool


class Side(NamedTuple):
    """One of the texts of a pair: what it is, its uid or place, and its pieces."""

    role: str
    name: str
    parts: list[Part]

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(part.text for part in self.parts)


class Card(NamedTuple):
    """A pair."""

    anchor: str
    similarity: float
    sides: tuple[Side, Side]


class Group(NamedTuple):
    """The pairs of a category with one collection, of which `cards` may be a selection."""

    title: str
    total: int
    cards: list[Card]


class Section(NamedTuple):
    """A category."""

    counts: Counts
    groups: list[Group]


def read_counts(path: str | PathLike[str]) -> Counts:
    """Read the counts of a category, as find_near_duplicates.py writes them.

    Raises:
        InputError: it is another file.
    """
    try:
        counts: Counts = json.loads(Path(path).read_text(encoding="utf-8"))
        return {name: counts[name] for name in COUNTS}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected counts of find_near_duplicates.py ({error!r})") from None


def read_pairs(path: str | PathLike[str]) -> list[dict[str, str]]:
    """Read the pairs of a category, as find_near_duplicates.py writes them.

    Raises:
        InputError: the file has other columns.
    """
    csv.field_size_limit(sys.maxsize)  # the default is shorter than long prompts
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        pairs = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise InputError(f"{path}:1: columns: expected {', '.join(COLUMNS)}, found {reader.fieldnames}")
    return pairs


def compare_texts(one: str, other: str) -> tuple[list[Part], list[Part]]:
    """Return the pieces of two texts; those that differ are marked unless the texts are long."""
    if max(len(one), len(other)) > LONGEST_MARKED:
        return [Part(show(one), True)], [Part(show(other), True)]
    pieces: tuple[list[Part], list[Part]] = ([], [])
    for kind, start, end, other_start, other_end in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        for parts, text in zip(pieces, (one[start:end], other[other_start:other_end]), strict=True):
            if text:
                parts.append(Part(show(text), kind == "equal"))
    return pieces


def choose_pairs(pairs: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return at most MOST_PAIRS pairs from the most to the least similar, evenly spaced in that order."""
    ordered = sorted(pairs, key=lambda pair: (-float(pair["similarity"]), pair["uid"]))
    if len(ordered) <= MOST_PAIRS:
        return ordered
    return [ordered[place * (len(ordered) - 1) // (MOST_PAIRS - 1)] for place in range(MOST_PAIRS)]


def build_card(anchor: str, pair: Mapping[str, str], is_dropped: bool) -> Card:
    """Return the card of a pair."""
    first, second = compare_texts(pair["text"], pair["other_text"])
    sides = (
        Side("training prompt, dropped" if is_dropped else "training prompt", pair["uid"], first),
        Side(SPLITS.get(pair["found_in"], "prompt of a further file"), show(pair["other"]), second),
    )
    return Card(anchor, float(pair["similarity"]), sides)


def name_collection(name: str) -> str:
    """Return how the page calls a collection: prompts of a split, or a further file by its path."""
    return f"{SPLITS[name]}s" if name in SPLITS else show(name)


def build_section(counts: Counts, pairs: Sequence[dict[str, str]]) -> Section:
    """Return the section of a category."""
    groups = []
    for number, (name, total) in enumerate(counts["near_duplicates"].items()):
        if found := [pair for pair in pairs if pair["found_in"] == name]:
            anchor = f"{counts['category']}-{number}"
            cards = [build_card(f"{anchor}-{pair['uid']}", pair, counts["dropped"] > 0) for pair in choose_pairs(found)]
            groups.append(Group(name_collection(name), total, cards))
    return Section(counts, groups)


def render_near_duplicates(counts: Sequence[Counts], pairs: Mapping[str, Sequence[dict[str, str]]]) -> str:
    """The page as HTML.

    Args:
        counts: from `read_counts`, one for each category.
        pairs: from `read_pairs`, by category.
    """
    by_category = {one["category"]: one for one in counts}
    ordered = [by_category[category] for category in order_categories(by_category)]
    collections = list(dict.fromkeys(name for one in ordered for name in one["near_duplicates"]))
    style = "".join(path.read_text(encoding="utf-8") for path in PARTS[1:])
    return render_template(
        PARTS[0].name,
        style,
        sections=[build_section(one, pairs[one["category"]]) for one in ordered],
        collections={name: name_collection(name) for name in collections},
        first=ordered[0],
    )
