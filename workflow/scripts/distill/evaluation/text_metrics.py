"""The text metrics: BLEU and chrF by sacreBLEU, ROUGE by rouge-score, and the shape of the answers.

ROUGE and shape use a tokenizer for every script: rouge-score's own keeps the letters a-z and digits only, so that a
Chinese answer would score 0.
"""

import functools
import logging
import re
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from distill.evaluation.bootstrap import Floats, Statistic
from distill.evaluation.formulas import ratio_of_sums, weighted_mean
from distill.generation.repetition import count_repeated, split_tokens

logger = logging.getLogger(__name__)

Records = Sequence[dict[str, Any]]

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")


# BLEU


def count_bleu_matches(bleu: BLEU, records: Records) -> Floats:
    """Counts of each record that corpus BLEU sums: length, reference length, 4 matched and 4 total n-gram counts.

    Returns:
        Counts, (records, 10).
    """
    scores = [bleu.corpus_score([record["prediction"]], [[record["reference"]]]) for record in records]
    return np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores], dtype=np.float64)


def corpus_bleu(weights: Floats, matches: Floats) -> Floats:
    """sacreBLEU's corpus BLEU of each resample, 0 to 100, from the summed counts of its records.

    Args:
        weights: (resamples, records).
        matches: (records, 10) from `count_bleu_matches`.
    """
    totals = np.rint(weights @ matches).astype(int).tolist()
    scores = [BLEU.compute_bleu(row[2:6], row[6:10], row[0], row[1], smooth_method="exp") for row in totals]
    return np.array([score.score for score in scores])


def build_bleu_statistics(records: Records, tokenize: str) -> dict[str, Statistic]:
    """Corpus BLEU against the references, with one of sacreBLEU's tokenizers."""
    matches = count_bleu_matches(BLEU(tokenize=tokenize), records)
    return {"bleu": Statistic(partial(corpus_bleu, matches=matches), len(records))}


def get_bleu_signature(tokenize: str) -> str:
    """sacreBLEU's signature of BLEU with one reference."""
    bleu = BLEU(tokenize=tokenize)
    bleu.num_refs = 1
    return str(bleu.get_signature())


def warn_of_chinese(records: Records, tokenize: str) -> None:
    """Warn if the references are mostly Chinese and BLEU's tokenizer takes a whole sentence for one word."""
    text = "".join(record["reference"] for record in records)
    if tokenize not in ("zh", "char") and 2 * len(HAN.findall(text)) > len(text):
        logger.warning("the references are mostly Chinese: BLEU needs --tokenize zh, %s does not split words", tokenize)


# chrF


def count_chrf_matches(chrf: CHRF, records: Records) -> Floats:
    """Counts of each record that corpus chrF sums: for each order, n-grams of answer, of reference, and in both.

    Returns:
        Counts, (records, 18).
    """
    answers, references = ([record[name] for record in records] for name in ("prediction", "reference"))
    return np.array(chrf._extract_corpus_statistics(answers, [references]), dtype=np.float64)


def corpus_chrf(weights: Floats, matches: Floats, chrf: CHRF) -> Floats:
    """sacreBLEU's corpus chrF2 of each resample, 0 to 100; it counts characters, so it suits any script.

    Args:
        weights: (resamples, records).
        matches: (records, 18) from `count_chrf_matches`.
        chrf: the metric's settings.
    """
    totals = np.rint(weights @ matches).astype(int).tolist()
    return np.array([chrf._compute_f_score(row) for row in totals])


def build_chrf_statistics(records: Records) -> dict[str, Statistic]:
    """Corpus chrF2 against the references."""
    chrf = CHRF()
    matches = count_chrf_matches(chrf, records)
    return {"chrf": Statistic(partial(corpus_chrf, matches=matches, chrf=chrf), len(records))}


def get_chrf_signature() -> str:
    """sacreBLEU's signature of chrF with one reference."""
    chrf = CHRF()
    chrf.num_refs = 1
    return str(chrf.get_signature())


# ROUGE


class AnyScriptTokenizer(Tokenizer):
    """`split_tokens` for rouge-score; on ASCII text the same as the package's own tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        """Split a text into tokens."""
        return split_tokens(text)


SCORER = RougeScorer(ROUGE_TYPES, tokenizer=AnyScriptTokenizer())


@functools.cache
def rouge_f1(reference: str, prediction: str) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F1 of one answer, 0 to 100 (Lin, 2004); 0 if a text has no token.

    Cached, because a comparison scores every answer twice: in its category and in the pooled one. Do not modify the
    result.
    """
    scores = SCORER.score(reference, prediction)
    return {name: 100 * scores[name].fmeasure for name in ROUGE_TYPES}


def build_rouge_statistics(records: Records) -> dict[str, Statistic]:
    """Mean ROUGE F1 over the records, for each type."""
    scores = [rouge_f1(record["reference"], record["prediction"]) for record in records]
    columns = {name: np.array([score[name] for score in scores]) for name in ROUGE_TYPES}
    return {name: Statistic(partial(weighted_mean, values=values), len(records)) for name, values in columns.items()}


# Shape


def distinct_share(texts: Sequence[Sequence[Any]]) -> float:
    """Distinct items divided by all items of all texts (distinct-n; Li et al., NAACL 2016); NaN without any item."""
    total = sum(map(len, texts))
    return len({item for text in texts for item in text}) / total if total else float("nan")


def constant(weights: Floats, value: float) -> Floats:
    """The value if every record is drawn once, NaN for a resample: a record drawn twice would repeat its n-grams."""
    return np.where((weights == 1).all(axis=1), value, np.nan)


def build_shape_statistics(records: Records) -> dict[str, Statistic]:
    """Length ratio (tokens of the answers / tokens of the references), repetition, distinct-1 and distinct-2.

    Repetition is the share of 4-grams that occurred earlier in the same answer.
    """
    answers = [split_tokens(record["prediction"]) for record in records]
    references = [split_tokens(record["reference"]) for record in records]
    lengths, reference_lengths = (np.array([*map(len, texts)], dtype=np.float64) for texts in (answers, references))
    repeated, ngrams = np.array([count_repeated(tokens) for tokens in answers], dtype=np.float64).T
    functions = {
        "length_ratio": partial(ratio_of_sums, numerators=lengths, denominators=reference_lengths),
        "repetition": partial(ratio_of_sums, numerators=repeated, denominators=ngrams),
        "distinct1": partial(constant, value=distinct_share(answers)),
        "distinct2": partial(constant, value=distinct_share([list(pairwise(tokens)) for tokens in answers])),
    }
    return {name: Statistic(function, len(records)) for name, function in functions.items()}
