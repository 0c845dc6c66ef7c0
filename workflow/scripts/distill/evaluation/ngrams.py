"""N-grams of tokens or characters, counted for many texts at once with NumPy.

Counting them with dictionaries, one text after the other, takes several times as long. No n-gram is hashed, so that
the counts are exact.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Records = Sequence[dict[str, Any]]
Codes = NDArray[np.int64]  # of a text, (tokens,)

BATCH = 32  # records whose n-grams are counted together


def count_in_batches(records: Records, count: Callable[[Records], NDArray[Any]]) -> NDArray[Any]:
    """Join the counts, (records, …), of batches of records; the n-grams of one batch are in memory at a time."""
    return np.concatenate([count(records[start : start + BATCH]) for start in range(0, len(records), BATCH)])


def get_texts(records: Records) -> tuple[list[str], list[str]]:
    """The answers and the references."""
    return [record["prediction"] for record in records], [record["reference"] for record in records]


def encode_tokens(texts: Sequence[Sequence[Hashable]]) -> list[list[int]]:
    """Replace tokens by whole numbers from 0, equal for equal tokens of all these texts."""
    codes: defaultdict[Hashable, int] = defaultdict()
    codes.default_factory = codes.__len__
    return [[codes[token] for token in text] for text in texts]


def encode_characters(text: str) -> Codes:
    """The code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.int64)


def number(keys: Codes) -> Codes:
    """Replace keys by whole numbers from 0, equal for equal keys."""
    return np.unique(keys, return_inverse=True)[1]


def iterate_ngrams(texts: Sequence[Sequence[int] | Codes], groups: Codes, order: int) -> Iterator[tuple[Codes, Codes]]:
    """Yield the n-grams of all texts, for n from 1 to `order`.

    An n-gram gets its number from those of the first n − 1 tokens and of the last one.

    Args:
        texts: codes of each text's tokens.
        groups: (texts,), numbers from 0; n-grams of different groups have different numbers.
        order: longest n-grams.

    Yields:
        For each n, the number of every n-gram, from 0, and the place of its text, (n-grams,) both.
    """
    codes = np.concatenate([np.asarray(text, dtype=np.int64) for text in texts])
    owners = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    tokens = number(groups[owners] * (codes.max(initial=0) + 1) + codes)
    numbers, starts = tokens, np.arange(len(codes))
    yield numbers, owners
    for n in range(2, order + 1):
        is_inside = starts + n <= len(codes)
        is_inside[is_inside] = owners[starts[is_inside] + n - 1] == owners[starts[is_inside]]
        starts = starts[is_inside]
        numbers = number(numbers[is_inside] * (len(codes) + 1) + tokens[starts + n - 1])
        yield numbers, owners[starts]


def count_overlaps(
    answers: Sequence[Sequence[int] | Codes], references: Sequence[Sequence[int] | Codes], order: int
) -> NDArray[np.int64]:
    """Count the n-grams of each answer, of its reference, and those in both, as often as in the text with fewer.

    Args:
        answers: codes of each answer's tokens.
        references: codes of each reference's tokens; equal codes are equal tokens.
        order: longest n-grams.

    Returns:
        Counts, (records, order, 3).
    """
    size = len(answers)
    groups = np.tile(np.arange(size), 2)
    counts = []
    for numbers, owners in iterate_ngrams([*answers, *references], groups, order):
        distinct = int(numbers.max(initial=-1)) + 1
        is_answer = owners < size
        in_answer, in_reference = (np.bincount(numbers[which], minlength=distinct) for which in (is_answer, ~is_answer))
        record = np.zeros(distinct, dtype=np.int64)
        record[numbers] = groups[owners]
        both = np.zeros(size, dtype=np.int64)
        np.add.at(both, record, np.minimum(in_answer, in_reference))
        totals = np.bincount(owners, minlength=2 * size)
        counts.append(np.stack([totals[:size], totals[size:], both], axis=1))
    return np.stack(counts, axis=1)


def count_distinct(texts: Sequence[Sequence[int]], n: int) -> NDArray[np.int64]:
    """Count the distinct n-grams of each text, and all of them; (texts, 2)."""
    *_, (numbers, owners) = iterate_ngrams(texts, np.arange(len(texts)), n)
    of_distinct = np.zeros(int(numbers.max(initial=-1)) + 1, dtype=np.int64)
    of_distinct[numbers] = owners
    return np.stack([np.bincount(found, minlength=len(texts)) for found in (of_distinct, owners)], axis=1)
