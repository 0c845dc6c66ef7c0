"""Which test records of a category are shown or judged, if not all are."""

import hashlib
from collections.abc import Sequence
from typing import Any


def choose_records(records: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Choose at most `most` records, those with the smallest hash of their uid; their order stays.

    The choice is stable: a new record replaces at most one of them.
    """
    ranks = {record["uid"]: hashlib.sha256(record["uid"].encode()).digest() for record in records}
    chosen = set(sorted(ranks, key=ranks.__getitem__)[:most])
    return [record for record in records if record["uid"] in chosen]
