"""Files with a judge's verdicts, from judge_pairs.py: checking them, and adding them to the records of predictions."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

from distill.common.digest import digest_of
from distill.common.errors import InputError, raise_problems
from distill.common.files import read_jsonl
from distill.evaluation.prediction_files import FIELDS, Check, find_problems, is_string

Records = Sequence[dict[str, Any]]


def is_verdicts(value: Any) -> bool:
    """Whether a value is a list of the verdicts in both orders, or an empty one."""
    is_list = isinstance(value, list) and len(value) in (0, 2)
    return is_list and all(isinstance(one, dict) and "verdict" in one for one in value)


VERDICT_FIELDS: dict[str, Check] = {
    "uid": FIELDS["uid"],
    "category": FIELDS["category"],
    "against": ("a string", is_string),
    "answers": ("the digests of two answers", lambda value: isinstance(value, list) and len(value) == 2),
    "score": ("0, 0.25, 0.5, 0.75, 1 or null", lambda value: value in (None, 0, 0.25, 0.5, 0.75, 1)),
    "is_contradictory": ("true, false or null", lambda value: value in (None, True, False)),
    "verdicts": ("a list of two verdicts or of none", is_verdicts),
}


def add_verdicts(records: Records, paths: Sequence[str | PathLike[str]]) -> None:
    """Add the judge's verdicts as `pairwise` to the records that were judged; to the others None.

    Args:
        records: from `load_predictions`; changed in place.
        paths: files from judge_pairs.py, of the same model.

    Raises:
        InputError: a record is broken, or its verdicts are on another answer than the record's.
    """
    found: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    for path in paths:
        lines = list(read_jsonl(path))
        raise_problems(find_problems(path, lines, VERDICT_FIELDS), "verdicts")
        found |= {(line["category"], line["uid"]): (f"{path}:{number}", line) for number, line in lines}
    for record in records:
        place, one = found.pop((record["category"], record["uid"]), ("", None))
        if one is not None and one["answers"][0] != digest_of(record["prediction"]):
            uid = record["uid"]
            raise InputError(f"{place}: expected verdicts on the answer to uid {uid}, found those on another answer")
        record["pairwise"] = one
    for (_, uid), (place, _) in found.items():
        raise InputError(f"{place}: expected verdicts on the predictions, found those on uid {uid}, which has none")
