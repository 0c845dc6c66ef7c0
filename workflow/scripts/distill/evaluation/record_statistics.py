"""What the scores of a model's records are computed from, counted once and kept in a file without any text."""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, TextIO, cast

import numpy as np

from distill.common.digest import digest_of
from distill.common.errors import InputError
from distill.common.files import write_atomically
from distill.common.progress import Progress
from distill.evaluation.metrics import FILE_ORDER, GROUPS, Columns
from distill.evaluation.options import ScoringOptions
from distill.evaluation.prediction_files import has_likelihoods

SUFFIX = ".statistics.npz"
IDENTITY = ("category", "uid", "reference")

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class RecordStatistics:
    """Counts of a model's records, in the order of category and uid.

    Attributes:
        records: columns that say which records these are and what state the answers are in: `category`, `uid`, the
            digest of the `reference`, `usable`, `with_label`, `truncated` and, if likelihoods were measured, in how
            many tokens the model's tokenizer splits the reference (`reference_tokens`).
        groups: the columns of each group of metrics, from its `Measure.count`.
        tokenize: sacreBLEU's tokenizer.
    """

    records: Columns
    groups: dict[str, Columns]
    tokenize: str

    def __len__(self) -> int:
        """The number of records."""
        return len(self.records["uid"])

    def iterate_identities(self) -> Iterator[dict[str, str]]:
        """Yield category, uid and digest of the reference of each record, for `check_same_records`."""
        for values in zip(*(self.records[name].tolist() for name in IDENTITY), strict=True):
            yield dict(zip(IDENTITY, values, strict=True))

    def equals(self, other: "RecordStatistics") -> bool:
        """Whether all columns are equal, so that all scores are; students may share the answers of one `_base`."""
        arrays, others = name_arrays(self), name_arrays(other)
        return arrays.keys() == others.keys() and all(
            np.array_equal(array, others[name], equal_nan=array.dtype.kind == "f") for name, array in arrays.items()
        )


def select_groups(options: ScoringOptions, answer_key: str) -> list[str]:
    """Names of the groups to compute, in the order of metrics.json."""
    chosen = [
        name for name, group in GROUPS.items()
        if name in options.metrics and (answer_key or not group.needs_answer_key)
    ]  # fmt: skip
    return sorted(chosen, key=[*FILE_ORDER, *GROUPS].index)


def count_statistics(records: Records, options: ScoringOptions, answer_key: str) -> RecordStatistics:
    """Count what the scores of records are computed from.

    Args:
        records: from `load_predictions`, at least one.
        options: `metrics` and `tokenize` matter here.
        answer_key: key of the value in an answer; without one, groups that need it are left out.

    Raises:
        InputError: there are no records.
        ValueError: a group counts columns of another length.
    """
    if not records:
        raise InputError("expected at least one prediction, found none")
    groups = {}
    chosen = select_groups(options, answer_key)
    progress = Progress(len(chosen), f"counts of {len(records)} records", unit="groups of metrics")
    for name in chosen:
        groups[name] = GROUPS[name].load().count(records, options.tokenize)
        if wrong := [column for column, values in groups[name].items() if len(values) != len(records)]:
            raise ValueError(f"metric group {name}: expected {len(records)} records in the column {wrong[0]}")
        progress.add(1)
    progress.close()
    return RecordStatistics(describe_records(records), groups, options.tokenize)


def describe_records(records: Records) -> Columns:
    """The columns that identify the records and count the states of the answers; see `RecordStatistics.records`."""
    columns = {
        "category": [record["category"] for record in records],
        "uid": [record["uid"] for record in records],
        "reference": [digest_of(record["reference"]) for record in records],
        "usable": [record["usable"] for record in records],
        "with_label": [record["label"] is not None for record in records],
        "truncated": [record["finish_reason"] == "length" for record in records],
    }
    if has_likelihoods(records):
        columns["reference_tokens"] = [record["nll_tokens"] for record in records]
    return {name: np.array(column) for name, column in columns.items()}


def pool(parts: Sequence[RecordStatistics]) -> RecordStatistics:
    """Join the statistics of several categories; columns that one of them lacks are left out.

    Args:
        parts: from `read_statistics` with the same options, at least one.
    """
    category, uid = (np.concatenate([part.records[name] for part in parts]) for name in ("category", "uid"))
    order = np.lexsort((uid, category))

    def join(columns: Sequence[Columns]) -> Columns:
        shared = [name for name in columns[0] if all(name in other for other in columns)]
        return {name: np.concatenate([each[name] for each in columns])[order] for name in shared}

    groups = {name: join([part.groups[name] for part in parts]) for name in parts[0].groups}
    return RecordStatistics(join([part.records for part in parts]), groups, parts[0].tokenize)


def name_arrays(statistics: RecordStatistics) -> Columns:
    """All columns by their names in a file, `GROUP.COLUMN`; those of the records have no group."""
    groups = {"": statistics.records} | statistics.groups
    return {f"{group}.{name}": values for group, columns in groups.items() for name, values in columns.items()}


def write_statistics(path: str | PathLike[str], statistics: RecordStatistics) -> None:
    """Write the statistics as NumPy arrays atomically; equal statistics make equal files."""
    settings = {"tokenize": np.array(statistics.tokenize), "groups": np.array(list(statistics.groups))}
    with write_atomically(path) as file:
        np.savez_compressed(cast(TextIO, file).buffer, allow_pickle=False, **settings, **name_arrays(statistics))


def read_statistics(path: str | PathLike[str], options: ScoringOptions, answer_key: str) -> RecordStatistics:
    """Read the statistics of the chosen groups.

    Args:
        path: from `write_statistics`.
        options: `metrics` and `tokenize` matter here.
        answer_key: see `count_statistics`.

    Raises:
        InputError: the file is not a statistics file, or lacks a group, or was made with another tokenizer.
    """
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        tokenize, found = str(arrays.pop("tokenize")), arrays.pop("groups").tolist()
        if len({len(values) for values in arrays.values()}) != 1 or not {f".{name}" for name in IDENTITY} <= set(
            arrays
        ):
            raise ValueError("columns are missing or differ in length")
    except (AttributeError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: expected a statistics file from score_predictions.py ({error!r})") from error
    chosen = select_groups(options, answer_key)
    again = "run score_predictions.py again with the same options"
    if missing := [name for name in chosen if name not in found]:
        raise InputError(f"{path}: expected the metrics {', '.join(chosen)}, found no {missing[0]}; {again}")
    if tokenize != options.tokenize:
        raise InputError(f"{path}: expected the tokenizer {options.tokenize}, found {tokenize}; {again}")
    columns: dict[str, Columns] = {name: {} for name in ("", *chosen)}
    for name, values in arrays.items():
        group, _, column = name.partition(".")
        if group in columns:
            columns[group][column] = values
    return RecordStatistics(columns.pop(""), columns, tokenize)
