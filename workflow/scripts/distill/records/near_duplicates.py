"""Near-duplicate prompts: training prompts that resemble a held-out prompt or an earlier training prompt.

The texts of all turns are compared. The system text, which prompts have in common, is not, nor are tools and
`teacher_prompt`. Splits are those that the answers will have; see `splits.get_split`.
"""

import csv
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from distill.common.errors import InputError, format_problem
from distill.common.files import dump_json, read_jsonl, write_atomically, write_json
from distill.records.alpaca import Place, read_records
from distill.records.conversations import clean_message, find_answer_start, format_turn, read_conversation
from distill.records.near_duplicate_options import COLUMNS, DROP, NearDuplicateOptions
from distill.records.options import SplitOptions
from distill.records.raw_records import check_message, get_split_key
from distill.records.splits import SPLITS, get_split
from distill.records.text_index import Sketcher, Text

logger = logging.getLogger(__name__)

TEXT_FIELDS = ("prompt", "question", "instruction", "messages")


class Pair(NamedTuple):
    """A training prompt and the most similar text of a collection.

    Attributes:
        prompt: the training prompt.
        found_in: the collection: `test`, `val`, the path of a further file, or `train`.
        other: the text in it; in `train`, one that precedes the prompt.
        similarity: their exact Jaccard similarity.
    """

    prompt: Text
    found_in: str
    other: Text
    similarity: float


def read_prompt(record: dict[str, Any]) -> Text:
    """Return the text of a prompt as `make_prompts` writes it; other turns of its conversation are its group."""
    turns = read_conversation(record).turns
    return Text(record["uid"], "\n".join(map(format_turn, turns)), get_split_key(record))


def join_messages(messages: Any) -> tuple[str, tuple[str, str, Any] | None]:
    """Return the text of a further record's messages, without system text and final answer, and the first problem.

    The problem is (field, expected, found), or None.
    """
    if not isinstance(messages, list):
        return "", ("messages", "a list of messages", messages)
    for number, message in enumerate(messages):
        if fault := check_message(message, f"messages[{number}]"):
            return "", fault
    asked = messages[: find_answer_start(messages)]
    return "\n".join(format_turn(clean_message(one)) for one in asked if one["role"] != "system"), None


def get_further_text(record: Any, path: Path, place: Place) -> str:
    """Return the text of a further record: `prompt`, `question`, `instruction` with `input`, or `messages`.

    Raises:
        InputError: the record has none of them, or the first of them is not text, or blank; names file, place, field.
    """
    if not isinstance(record, dict):
        raise InputError(format_problem(path, place, "record", "an object", record))
    name = next((name for name in TEXT_FIELDS if record.get(name) is not None), None)
    if name is None:
        raise InputError(format_problem(path, place, "record", f"an object with {' or '.join(TEXT_FIELDS)}", record))
    text, fault = join_messages(record[name]) if name == "messages" else (record[name], None)
    if fault:
        raise InputError(format_problem(path, place, *fault))
    try:
        if not isinstance(text, str) or not text.strip():
            raise ValueError
        text.encode()  # an escaped lone surrogate has no bytes
    except ValueError:
        raise InputError(format_problem(path, place, name, "text that is not blank", record[name])) from None
    further = record.get("input") if name == "instruction" else None
    if not isinstance(further, str | None):
        raise InputError(format_problem(path, place, "input", "text or nothing", further))
    return f"{text}\n{further}" if further and further.strip() else text


def read_further(path: Path) -> Iterator[Text]:
    """Yield the texts of a further file, a JSON array or JSONL.

    Raises:
        InputError: the file is missing, empty or malformed; see `get_further_text`.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    count = 0
    for count, (place, record) in enumerate(read_records(path), start=1):  # noqa: B007
        yield Text(f"{path}:{place}", get_further_text(record, path, place))
    if not count:
        raise InputError(format_problem(path, 1, "file", "at least one record", "an empty file"))


@dataclass
class Search:
    """The search for near-duplicates among a category's training prompts, and its counts.

    Attributes:
        options: what a near-duplicate is, and what becomes of it.
        split: how splits are decided.
        prompts: prompts of the category, by split.
        found: training prompts with a near-duplicate, by collection.
        uids: training prompts with a near-duplicate in any collection.
    """

    options: NearDuplicateOptions
    split: SplitOptions
    prompts: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    uids: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sketcher = Sketcher(self.options.threshold, self.options.shingle_size)
        self.held_out = {name: self.sketcher.make_index() for name in ("test", "val")}
        self.train = self.sketcher.make_index()

    def find_split(self, text: Text) -> str:
        """Return the split of a prompt."""
        return get_split(text.group, self.split.seed, self.split.val_fraction, self.split.test_fraction)

    def add_held_out(self, path: Path) -> None:
        """Add the prompts of a file that are held out."""
        for _, record in read_jsonl(path):
            text = read_prompt(record)
            if (split := self.find_split(text)) != "train":
                self.held_out[split].add(text, self.sketcher.sketch(text.text))

    def add_further(self, path: str) -> None:
        """Add the texts of a further file."""
        index = self.held_out[path] = self.sketcher.make_index()
        for text in read_further(Path(path)):
            index.add(text, self.sketcher.sketch(text.text))

    def compare(self, text: Text) -> list[Pair]:
        """Return the pairs of a training prompt: with the most similar text of each collection that has one.

        A prompt without any is added to those with which later prompts are compared. So the first of several
        near-duplicates in train is in no pair, and no pair in train has a prompt that resembles a held-out one.
        """
        sketch = self.sketcher.sketch(text.text)
        matches = {name: index.find(text, sketch) for name, index in self.held_out.items()}
        if not any(matches.values()):
            matches = {"train": self.train.find(text, sketch)}
        pairs = [Pair(text, name, *match) for name, match in matches.items() if match]
        if not pairs:
            self.train.add(text, sketch)
        return pairs

    def search(self, path: Path) -> Iterator[tuple[dict[str, Any], list[Pair]]]:
        """Yield (prompt, its pairs) for each prompt of the category; held-out prompts have none."""
        for _, record in read_jsonl(path):
            text = read_prompt(record)
            split = self.find_split(text)
            self.prompts[split] += 1
            pairs = self.compare(text) if split == "train" else []
            self.found.update(pair.found_in for pair in pairs)
            self.uids += [text.name] if pairs else []
            yield record, pairs

    def summarise(self, category: str) -> dict[str, Any]:
        """Return settings, counts and uids, as the JSON file has them."""
        options = self.options
        return {
            "category": category,
            "threshold": options.threshold,
            "shingle_size": options.shingle_size,
            "action": options.action,
            "prompts": {split: self.prompts[split] for split in SPLITS},
            "compared_with": {name: len(index.texts) for name, index in self.held_out.items()},
            "near_duplicates": {name: self.found[name] for name in (*self.held_out, "train")},
            "dropped": len(self.uids) if options.action == DROP else 0,
            "incomplete": sum(index.incomplete for index in (*self.held_out.values(), self.train)),
            "uids": self.uids,
        }


def find_near_duplicates(
    category: str,
    prompts: Path,
    others: Sequence[Path],
    split: SplitOptions,
    options: NearDuplicateOptions,
    pairs_out: Path,
    counts_out: Path,
    kept_out: Path | None = None,
) -> dict[str, Any]:
    """Find the near-duplicates of a category's training prompts; write the pairs, the counts and the prompts kept.

    Args:
        category: name of the category.
        prompts: its prompts (JSONL).
        others: prompts of other categories, of which the held-out ones are compared, too.
        split: how splits are decided.
        options: what a near-duplicate is, and what becomes of it.
        pairs_out: CSV file to write, a line for each pair with the columns COLUMNS.
        counts_out: JSON file to write; see `Search.summarise`.
        kept_out: JSONL file to write: the prompts, with action `drop` without training prompts that have a pair.

    Returns:
        What the JSON file has.

    Raises:
        InputError: a further file is missing or malformed, rensa is not installed, or action `drop` leaves no
            training prompt.
    """
    search = Search(options, split)
    for path in (prompts, *others):
        search.add_held_out(path)
    for further in options.against:
        search.add_further(further)
    with ExitStack() as stack:
        kept = stack.enter_context(write_atomically(kept_out)) if kept_out else None
        writer = csv.writer(stack.enter_context(write_atomically(pairs_out)), lineterminator="\n")
        writer.writerow(COLUMNS)
        for record, pairs in search.search(prompts):
            for one in pairs:
                similarity = f"{one.similarity:.4f}"
                writer.writerow(
                    [one.prompt.name, one.found_in, one.other.name, similarity, one.prompt.text, one.other.text]
                )
            if kept and not (pairs and options.action == DROP):
                kept.write(dump_json(record) + "\n")
        counts = search.summarise(category)
        if counts["dropped"] and counts["dropped"] == counts["prompts"]["train"]:
            raise InputError(
                f"{category}: near_duplicates.action drop leaves none of the {counts['dropped']} training prompts: "
                f"{describe_counts(counts)}; raise near_duplicates.threshold or look at near_duplicates.against"
            )
        write_json(counts_out, counts)
    log_counts(counts)
    return counts


def describe_counts(counts: Mapping[str, Any]) -> str:
    """Return what the near-duplicates are, such as `3 of test, 0 of val and 2 of train`."""
    *parts, last = [f"{number} of {name}" for name, number in counts["near_duplicates"].items()]
    return f"{', '.join(parts)} and {last}"


def log_counts(counts: Mapping[str, Any]) -> None:
    """Log the counts, and warn of searches that were not complete."""
    measure = f"Jaccard similarity of {counts['shingle_size']}-grams from {counts['threshold']:g}"
    text = "%s: %d of %d training prompts are near-duplicates (%s): %s; %d dropped"
    numbers = (len(counts["uids"]), counts["prompts"]["train"], measure, describe_counts(counts), counts["dropped"])
    logger.info(text, counts["category"], *numbers)
    if counts["incomplete"]:
        logger.warning(
            "%s: %d searches left out candidates and may have missed near-duplicates, since too many prompts are "
            "similar, as those made from a template are; raise near_duplicates.threshold",
            counts["category"],
            counts["incomplete"],
        )
