"""Files of predictions: reading and checking them, the teacher's judgements beside them, and plain text for others."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

from distill.common.errors import InputError, format_problem, raise_problems
from distill.common.files import read_jsonl, write_atomically


def is_number(value: Any) -> bool:
    """A finite int or float; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_number_or_null(value: Any) -> bool:
    """A finite number or null."""
    return value is None or is_number(value)


def is_count(value: Any) -> bool:
    """A whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "uid": ("a string", lambda value: isinstance(value, str)),
    "category": ("a string", lambda value: isinstance(value, str)),
    "reference": ("a string", lambda value: isinstance(value, str)),
    "prediction": ("a string", lambda value: isinstance(value, str)),
    "finish_reason": ('"stop" or "length"', lambda value: value in ("stop", "length")),
    "usable": ("true or false", lambda value: isinstance(value, bool)),
    "label": ("a finite number or null", is_number_or_null),
    "parsed_value": ("a finite number or null", is_number_or_null),
}
PPL_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "nll": ("a finite number (nats)", is_number),
    "nll_tokens": ("a whole number from 0", is_count),
    "nll_hits": ("a whole number from 0", is_count),
}


def has_likelihoods(records: Iterable[dict[str, Any]]) -> bool:
    """Whether the likelihood of the references was measured; a model behind a server does not tell it."""
    return any(field in record for record in records for field in PPL_FIELDS)


def is_judged(records: Iterable[dict[str, Any]]) -> bool:
    """Whether the teacher's likelihood of the answers was measured; see `add_judgements`."""
    return any("teacher_nll" in record for record in records)


def load_predictions(paths: Sequence[str | PathLike[str]], metrics: Iterable[str]) -> list[dict[str, Any]]:
    """The records of all files, pooled, in an order that does not depend on that of the files or of their lines.

    Likelihoods, which `ppl` and `fdistill` need, are missing only where no record has them: see `has_likelihoods`.

    Raises:
        InputError: a file without records, or a record with a field missing or of another type; names all of them.
    """
    found = {path: list(read_jsonl(path)) for path in paths}
    records = [record for lines in found.values() for _, record in lines]
    needs_likelihoods = not {"ppl", "fdistill"}.isdisjoint(metrics)
    fields = FIELDS | PPL_FIELDS if needs_likelihoods and has_likelihoods(records) else FIELDS
    problems: list[str] = []
    for path, lines in found.items():
        problems += find_problems(path, lines, fields)
        if not lines:
            problems.append(f"{path}: expected at least one prediction, found an empty file")
    raise_problems(problems, "predictions")
    records.sort(key=lambda record: (record["category"], record["uid"], record["prediction"], record["reference"]))
    return records


def find_problems(
    path: str | PathLike[str],
    lines: Iterable[tuple[int, dict[str, Any]]],
    fields: dict[str, tuple[str, Callable[[Any], bool]]],
) -> list[str]:
    """Fields of a file's records that are missing or of another type, each with file and line."""
    problems = []
    for line, record in lines:
        for field, (expected, is_right) in fields.items():
            if field not in record:
                problems.append(f"{path}:{line}: {field}: expected {expected}, but the field is missing")
            elif not is_right(record[field]):
                problems.append(format_problem(path, line, field, expected, record[field]))
    return problems


def add_judgements(records: Sequence[dict[str, Any]], model: str, paths: Sequence[str | PathLike[str]]) -> None:
    """Give each prediction the teacher's likelihood of its answer, as `teacher_nll` and `teacher_nll_tokens`.

    Args:
        records: of `load_predictions`.
        model: whose they are.
        paths: files of judge_answers.py.

    Raises:
        InputError: a broken record, or a prediction that was not judged.
    """
    needed = {"model": FIELDS["uid"]} | {name: FIELDS[name] for name in ("uid", "category")} | PPL_FIELDS
    judged: dict[tuple[str, str], dict[str, Any]] = {}
    for path in paths:
        lines = list(read_jsonl(path))
        raise_problems(find_problems(path, lines, needed), "judged answers")
        judged |= {(line["category"], line["uid"]): line for _, line in lines if line.get("model") == model}
    for record in records:
        if (found := judged.get((record["category"], record["uid"]))) is None:
            names = ", ".join(map(str, paths))
            raise InputError(
                f"{names}: expected a record of each prediction, found none of {model}'s uid {record['uid']}"
            )
        record["teacher_nll"], record["teacher_nll_tokens"] = found["nll"], found["nll_tokens"]


def write_lines(records: Iterable[dict[str, Any]], field: str, path: str | PathLike[str]) -> None:
    """A field of each record as one line of a text file, as other scorers read it: all blanks become one space."""
    with write_atomically(path) as file:
        file.writelines(" ".join(record[field].split()) + "\n" for record in records)


def check_same_records(found: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Refuse files whose records are not of the same prompts and references, each once, in whatever order.

    Args:
        found: records by the name of their file, or of their files.

    Raises:
        InputError: names two of the files and their first difference.
    """
    first, kept = "", {}
    for name, records in found.items():
        keys = [(record.get("category"), record["uid"]) for record in records]
        references = dict(zip(keys, (record.get("reference") for record in records), strict=True))
        if len(references) < len(keys):
            ((_, twice), _), *_ = Counter(keys).most_common(1)
            raise InputError(f"{name}: expected each prompt once, found uid {twice} again")
        if not first:
            first, kept = name, references
            continue
        for key in sorted(kept.keys() ^ references.keys(), key=str):
            where, lacking = (first, name) if key in kept else (name, first)
            raise InputError(f"{lacking}: expected the records of {where}, found none of uid {key[1]}")
        for key in sorted(references, key=str):
            if references[key] != kept[key]:
                raise InputError(f"{name}: expected the references of {first}, found another one of uid {key[1]}")
