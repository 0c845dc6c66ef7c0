"""ROUGE F1 by the rouge-score package, with a tokenizer that keeps every script.

The package's own tokenizer knows the letters a-z and digits only, so that a Chinese answer would score 0.
"""

import functools
import re
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from distill.evaluation.bootstrap import Floats, Statistic

METRICS = ("rouge1", "rouge2", "rougeL")


# Scripts written without blanks between words: Chinese characters and Japanese kana stand as a token each.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
TOKEN = re.compile(f"[{UNSPACED}]|[^\\W_{UNSPACED}]+")


class AnyScriptTokenizer(Tokenizer):
    """Lower-case words and numbers of a text in any script, without punctuation."""

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text; on ASCII the same as the package's own."""
        return TOKEN.findall(text.lower())


SCORER = RougeScorer(METRICS, tokenizer=AnyScriptTokenizer())


@functools.cache
def rouge_f1(reference: str, prediction: str) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F1 of one answer, 0 to 100 (C.-Y. Lin, 2004); 0 where a text has no token.

    Kept, not to be changed: a comparison asks for each pair once in its category and once for all of them.
    """
    scores = SCORER.score(reference, prediction)
    return {name: 100 * scores[name].fmeasure for name in METRICS}


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
