"""What answers look like, whatever they say: how long they are, how much they repeat, how varied they are."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.bootstrap import Floats, Statistic
from distill.rouge import TOKEN

REPEATED = 4  # tokens of a run that counts as a repetition


def split_tokens(text: str) -> list[str]:
    """Words and numbers in lower case, Chinese characters and kana each on its own, as ROUGE has them."""
    return TOKEN.findall(text.lower())


def count_repeated(tokens: Sequence[str], n: int = REPEATED) -> tuple[int, int]:
    """(n-grams that have stood before in the same text, n-grams)."""
    grams = [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]
    return len(grams) - len(set(grams)), len(grams)


def ratio_of_sums(weights: Floats, above: Floats, below: Floats) -> Floats:
    """Sum over records divided by another; NaN where that is 0. Shapes as in `weighted_mean` of scores."""
    return (weights @ above) / (weights @ below)


def share_of_distinct(weights: Floats, distinct: float) -> Floats:
    """`distinct` for all records drawn once; NaN for a resample, in which a record drawn twice repeats itself."""
    return np.where((weights == 1).all(axis=1), distinct, np.nan)


def find_distinct(texts: Sequence[Sequence[Any]]) -> float:
    """Different items by items over all texts (distinct-n of Li et al., NAACL 2016); NaN where there is none."""
    total = sum(map(len, texts))
    return len({item for text in texts for item in text}) / total if total else float("nan")


def build_shape_statistics(records: Sequence[dict[str, Any]]) -> dict[str, Statistic]:
    """length_ratio (tokens of the answers by those of the references), repetition, distinct1 and distinct2.

    Repetition is the share of four-token runs that have stood before in the same answer.
    """
    answers = [split_tokens(record["prediction"]) for record in records]

    def column(values: Sequence[int]) -> NDArray[np.float64]:
        return np.array(values, dtype=np.float64)

    lengths = column([len(tokens) for tokens in answers])
    references = column([len(split_tokens(record["reference"])) for record in records])
    repeated, runs = (column(counts) for counts in zip(*map(count_repeated, answers), strict=True))
    distinct = find_distinct(answers), find_distinct([list(pairwise(tokens)) for tokens in answers])
    n = len(records)
    return {
        "length_ratio": Statistic(partial(ratio_of_sums, above=lengths, below=references), n),
        "repetition": Statistic(partial(ratio_of_sums, above=repeated, below=runs), n),
        "distinct1": Statistic(partial(share_of_distinct, distinct=distinct[0]), n),
        "distinct2": Statistic(partial(share_of_distinct, distinct=distinct[1]), n),
    }
