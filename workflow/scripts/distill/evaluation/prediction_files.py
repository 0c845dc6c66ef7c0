"""Prediction files: reading and checking them, adding the teacher's judgements, and plain text for other scorers."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

from distill.common.errors import InputError, format_problem, raise_problems
from distill.common.files import read_jsonl, write_atomically

Check = tuple[str, Callable[[Any], bool]]  # what is expected, and whether a value is that


def is_string(value: Any) -> bool:
    """Whether a value is a string."""
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    """Whether a value is a finite int or float; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_number_or_null(value: Any) -> bool:
    """Whether a value is a finite number or null."""
    return value is None or is_number(value)


def is_count(value: Any) -> bool:
    """Whether a value is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


FIELDS: dict[str, Check] = {
    "uid": ("a string", is_string),
    "category": ("a string", is_string),
    "reference": ("a string", is_string),
    "prediction": ("a string", is_string),
    "finish_reason": ('"stop" or "length"', lambda value: value in ("stop", "length")),
    "usable": ("true or false", lambda value: isinstance(value, bool)),
    "label": ("a finite number or null", is_number_or_null),
    "parsed_value": ("a finite number or null", is_number_or_null),
}
LIKELIHOOD_FIELDS: dict[str, Check] = {
    "nll": ("a finite number (nats)", is_number),
    "nll_tokens": ("a whole number from 0", is_count),
    "nll_hits": ("a whole number from 0", is_count),
}


def has_likelihoods(records: Iterable[dict[str, Any]]) -> bool:
    """Whether the likelihood of every reference was measured; some engines cannot measure it."""
    return all(field in record for record in records for field in LIKELIHOOD_FIELDS)


def is_judged(records: Iterable[dict[str, Any]]) -> bool:
    """Whether the records hold the teacher's likelihood of the predictions; see `add_judgements`."""
    return any("teacher_nll" in record for record in records)


def load_predictions(paths: Sequence[str | PathLike[str]], with_likelihoods: bool = False) -> list[dict[str, Any]]:
    """Load and pool the records of all files, in an order that does not depend on the order of files or lines.

    Args:
        paths: prediction files.
        with_likelihoods: check the likelihoods too. All records of a file have them, or none does.

    Raises:
        InputError: a file has no records, or a field is missing or has another type; names every problem.
    """
    lines_by_path = {path: list(read_jsonl(path)) for path in paths}
    records = [record for lines in lines_by_path.values() for _, record in lines]
    problems: list[str] = []
    for path, lines in lines_by_path.items():
        is_measured = any(field in record for _, record in lines for field in LIKELIHOOD_FIELDS)
        fields = FIELDS | LIKELIHOOD_FIELDS if with_likelihoods and is_measured else FIELDS
        problems += find_problems(path, lines, fields)
        if not lines:
            problems.append(f"{path}: expected at least one prediction, found an empty file")
    raise_problems(problems, "predictions")
    records.sort(key=lambda record: (record["category"], record["uid"], record["prediction"], record["reference"]))
    return records


def find_problems(
    path: str | PathLike[str], lines: Iterable[tuple[int, dict[str, Any]]], fields: Mapping[str, Check]
) -> list[str]:
    """Find fields that are missing or have another type; each problem names file and line.

    Args:
        path: the file.
        lines: from `read_jsonl`.
        fields: fields that every record needs.
    """
    problems = []
    for line, record in lines:
        for field, (expected, is_right) in fields.items():
            if field not in record:
                problems.append(f"{path}:{line}: {field}: expected {expected}, but the field is missing")
            elif not is_right(record[field]):
                problems.append(format_problem(path, line, field, expected, record[field]))
    return problems


def add_judgements(records: Sequence[dict[str, Any]], model: str, paths: Sequence[str | PathLike[str]]) -> None:
    """Add the teacher's likelihood of each prediction, as `teacher_nll` (nats) and `teacher_nll_tokens`.

    Args:
        records: from `load_predictions`; changed in place.
        model: the model that made the predictions.
        paths: files from judge_answers.py.

    Raises:
        InputError: a record is broken, or a prediction was not judged.
    """
    needed = dict.fromkeys(("model", "uid", "category"), FIELDS["uid"]) | LIKELIHOOD_FIELDS
    judged: dict[tuple[str, str], dict[str, Any]] = {}
    for path in paths:
        lines = list(read_jsonl(path))
        raise_problems(find_problems(path, lines, needed), "judged answers")
        judged |= {(line["category"], line["uid"]): line for _, line in lines if line["model"] == model}
    for record in records:
        if (found := judged.get((record["category"], record["uid"]))) is None:
            names = ", ".join(map(str, paths))
            raise InputError(
                f"{names}: expected a record of each prediction, found none of {model}'s uid {record['uid']}"
            )
        record["teacher_nll"], record["teacher_nll_tokens"] = found["nll"], found["nll_tokens"]


def write_lines(records: Iterable[dict[str, Any]], field: str, path: str | PathLike[str]) -> None:
    """Write a field of each record as one line of text, for other scorers; runs of whitespace become one space."""
    with write_atomically(path) as file:
        file.writelines(" ".join(record[field].split()) + "\n" for record in records)


def check_same_records(records_by_file: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Check that all files hold the same prompts and references, each prompt once, in any order.

    Args:
        records_by_file: records by file name.

    Raises:
        InputError: names two of the files and their first difference.
    """
    first, expected = "", {}
    for name, records in records_by_file.items():
        keys = [(record.get("category"), record["uid"]) for record in records]
        references = dict(zip(keys, (record.get("reference") for record in records), strict=True))
        if len(references) < len(keys):
            ((_, twice), _), *_ = Counter(keys).most_common(1)
            raise InputError(f"{name}: expected each prompt once, found uid {twice} again")
        if not first:
            first, expected = name, references
            continue
        for key in sorted(expected.keys() ^ references.keys(), key=str):
            complete, incomplete = (first, name) if key in expected else (name, first)
            raise InputError(f"{incomplete}: expected the records of {complete}, found none of uid {key[1]}")
        for key in sorted(references, key=str):
            if references[key] != expected[key]:
                raise InputError(f"{name}: expected the references of {first}, found another one of uid {key[1]}")
