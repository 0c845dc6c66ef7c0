"""ROUGE as in rouge-score, and the shape of the answers.

Both use a tokenizer for every script: rouge-score's own keeps the letters a-z and digits only, so that a Chinese answer
would score 0.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq

from distill.evaluation.bootstrap import Floats, Statistic
from distill.evaluation.formulas import ratio_of_sums, weighted_mean
from distill.evaluation.metrics import Columns
from distill.evaluation.ngrams import (
    Records,
    count_distinct,
    count_in_batches,
    count_overlaps,
    encode_tokens,
    get_texts,
)
from distill.generation.repetition import NGRAM, split_tokens

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
# Answers in a sample for distinct-n, and samples of a category. More texts have fewer new words, so that the measure
# would depend on the number of test records.
SAMPLE_SIZE = 20
SAMPLES = 50


# ROUGE


def f1(matched: NDArray[Any], answer: NDArray[Any], reference: NDArray[Any]) -> Floats:
    """F1 of precision and recall, 0 to 100; 0 without a match.

    Args:
        matched: number of matches of each record, (records,).
        answer: number of n-grams or tokens that could match in the answer, (records,).
        reference: the same of the reference, (records,).
    """
    precision, recall = matched / np.maximum(answer, 1), matched / np.maximum(reference, 1)
    with np.errstate(invalid="ignore"):
        return 100 * np.where(matched > 0, 2 * precision * recall / (precision + recall), 0.0)


def count_rouge_f1(records: Records) -> Floats:
    """ROUGE-1, ROUGE-2 and ROUGE-L F1 of each answer, 0 to 100 (Lin, 2004), (records, 3); 0 if a text has no token."""
    texts = encode_tokens([split_tokens(text) for texts in get_texts(records) for text in texts])
    answers, references = texts[: len(records)], texts[len(records) :]
    overlaps = count_overlaps(answers, references, 2)
    common = np.array([LCSseq.similarity(*pair) for pair in zip(answers, references, strict=True)])
    unigrams, bigrams = overlaps[:, 0], overlaps[:, 1]
    columns = [(unigrams[:, 2], *unigrams.T[:2]), (bigrams[:, 2], *bigrams.T[:2]), (common, *unigrams.T[:2])]
    return np.stack([f1(*column) for column in columns], axis=1)


def count_rouge(records: Records, tokenize: str) -> Columns:
    """ROUGE F1 of each record, by type."""
    return dict(zip(ROUGE_TYPES, count_in_batches(records, count_rouge_f1).T, strict=True))


def build_rouge(columns: Columns) -> dict[str, Statistic]:
    """Mean ROUGE F1 over the records, for each type."""
    return {name: Statistic(partial(weighted_mean, values=values), len(values)) for name, values in columns.items()}


# Shape


def distinct_share(texts: Sequence[Sequence[Any]]) -> float:
    """Distinct items divided by all items of all texts (distinct-n; Li et al., NAACL 2016); NaN without any item."""
    total = sum(map(len, texts))
    return len({item for text in texts for item in text}) / total if total else float("nan")


def draw_samples(count: int) -> Iterator[list[int]]:
    """Yield the places of the answers in each sample for distinct-n; all answers at once if there are only a few.

    The samples depend on the number of answers alone, so that models with the same records have the same samples.
    """
    if count <= SAMPLE_SIZE:
        yield list(range(count))
        return
    generator = np.random.default_rng(0)
    for _ in range(SAMPLES):
        yield generator.choice(count, SAMPLE_SIZE, replace=False).tolist()


def measure_distinct(answers: Sequence[str]) -> tuple[float, float]:
    """Means of distinct-1 and distinct-2 over samples of the answers of a category; NaN without any n-gram."""
    shares = []
    for places in draw_samples(len(answers)):
        tokens = [split_tokens(answers[place]) for place in places]
        shares.append([distinct_share(tokens), distinct_share([list(pairwise(text)) for text in tokens])])
    ones, twos = (mean_of_defined(column) for column in np.array(shares).T)
    return ones, twos


def mean_of_defined(values: Floats) -> float:
    """Mean of the values that are not NaN; NaN without any. The mean of equal values is exactly their value."""
    distinct, counts = np.unique(values[~np.isnan(values)], return_counts=True)
    return float(distinct @ (counts / counts.sum())) if len(distinct) else float("nan")


def count_lengths(records: Records) -> NDArray[Any]:
    """Tokens of the answer and of the reference, 4-grams of the answer that occur earlier in it, and all of them.

    Returns:
        Counts, (records, 4).
    """
    answers, references = ([split_tokens(text) for text in texts] for texts in get_texts(records))
    distinct, ngrams = count_distinct(encode_tokens(answers), NGRAM).T
    lengths = [[*map(len, texts)] for texts in (answers, references)]
    return np.stack([*lengths, ngrams - distinct, ngrams], axis=1)


def count_shape(records: Records, tokenize: str) -> Columns:
    """Lengths and repeated 4-grams of each record; its category's distinct-1 and distinct-2, the same for all of it."""
    names = ("tokens", "reference_tokens", "repeated", "ngrams")
    columns: Columns = dict(zip(names, count_in_batches(records, count_lengths).T, strict=True))
    categories = np.array([record["category"] for record in records])
    distinct = np.empty((2, len(records)))
    for category in set(categories.tolist()):
        places = np.flatnonzero(categories == category).tolist()
        shares = measure_distinct([records[place]["prediction"] for place in places])
        distinct[:, places] = np.array(shares)[:, None]
    return columns | {"distinct1": distinct[0], "distinct2": distinct[1]}


def constant(weights: Floats, value: float) -> Floats:
    """The value if every record is drawn once, NaN for a resample: a record drawn twice would repeat its n-grams."""
    return np.where((weights == 1).all(axis=1), value, np.nan)


def build_shape(columns: Columns) -> dict[str, Statistic]:
    """Length ratio (tokens of the answers / tokens of the references), repetition, distinct-1 and distinct-2.

    Repetition is the share of 4-grams that occurred earlier in the same answer. Distinct-n of several categories is the
    mean over their records.
    """
    lengths = {name: values.astype(np.float64) for name, values in columns.items()}
    functions: dict[str, Callable[[Floats], Floats]] = {
        "length_ratio": partial(ratio_of_sums, numerators=lengths["tokens"], denominators=lengths["reference_tokens"]),
        "repetition": partial(ratio_of_sums, numerators=lengths["repeated"], denominators=lengths["ngrams"]),
    }
    functions |= {name: partial(constant, value=mean_of_defined(lengths[name])) for name in ("distinct1", "distinct2")}
    return {name: Statistic(function, len(columns["tokens"])) for name, function in functions.items()}
