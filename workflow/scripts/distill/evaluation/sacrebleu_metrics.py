"""BLEU and chrF: counted as in sacreBLEU and computed for all resamples at once, equal to sacreBLEU's scores."""

import logging
import math
import re
import string
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

from distill.evaluation.bootstrap import Floats, Statistic
from distill.evaluation.metrics import Columns
from distill.evaluation.ngrams import (
    Records,
    count_in_batches,
    count_overlaps,
    encode_characters,
    encode_tokens,
    get_texts,
)

logger = logging.getLogger(__name__)

BLEU_ORDER = 4
PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]")
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")


# BLEU


class ChineseSpacing(dict[int, str]):
    """Translation table for `str.translate` that puts tabs around what sacreBLEU's tokenizer `zh` takes for Chinese."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        self[code] = f"\t{character}\t" if TokenizerZh._is_chinese_char(character) else character
        return self[code]


class FastTokenizerZh:
    """sacreBLEU's tokenizer `zh`, which puts spaces around Chinese characters one by one, in an eighth of its time.

    Tabs take the place of these spaces: they separate tokens as well, and the regular expressions of the next step,
    which would replace each space by three, pass over them. Those split at ASCII punctuation; a text that has none
    skips them.
    """

    def __init__(self) -> None:
        self.spacing = ChineseSpacing()
        self.split_punctuation = TokenizerRegexp()

    def __call__(self, line: str) -> str:
        """Split a text into tokens with one space between them."""
        spaced = line.strip().translate(self.spacing)
        return str(self.split_punctuation(spaced)) if PUNCTUATION.search(line) else " ".join(spaced.split())


def make_bleu(tokenize: str) -> BLEU:
    """sacreBLEU's metric with one of its tokenizers."""
    bleu = BLEU(tokenize=tokenize)
    if tokenize == "zh":
        bleu.tokenizer = FastTokenizerZh()
    return bleu


def forget_texts(bleu: BLEU) -> None:
    """Empty the caches of sacreBLEU's tokenizers, which would keep the last 65,536 texts."""
    for tokenizer in (bleu.tokenizer, *vars(bleu.tokenizer).values()):
        if clear := getattr(type(tokenizer).__call__, "cache_clear", None):
            clear()


def count_bleu_matches(bleu: BLEU, records: Records) -> NDArray[Any]:
    """Counts of each record that corpus BLEU sums: length, reference length, 4 matched and 4 total n-gram counts.

    Returns:
        Counts, (records, 10).
    """
    tokens = [[bleu._preprocess_segment(text).split() for text in texts] for texts in get_texts(records)]
    forget_texts(bleu)
    codes = encode_tokens([*tokens[0], *tokens[1]])
    overlaps = count_overlaps(codes[: len(records)], codes[len(records) :], BLEU_ORDER)
    return np.concatenate([overlaps[:, 0, :2], overlaps[:, :, 2], overlaps[:, :, 0]], axis=1)


def count_bleu(records: Records, tokenize: str) -> Columns:
    """The counts that corpus BLEU sums, with one of sacreBLEU's tokenizers."""
    warn_of_chinese(records, tokenize)
    return {"matches": count_in_batches(records, partial(count_bleu_matches, make_bleu(tokenize)))}


# As sacreBLEU's, to the last digit; those of NumPy depend on the processor.
log, exp = (np.vectorize(function, otypes=[np.float64]) for function in (math.log, math.exp))


def compute_bleu(sums: Floats) -> Floats:
    """sacreBLEU's `BLEU.compute_bleu` with the smoothing method `exp` (its paper's method 3: Chen and Cherry, 2014).

    Args:
        sums: summed counts, (resamples, 10), in the order of `count_bleu_matches`.

    Returns:
        Corpus BLEU, 0 to 100, (resamples,).
    """
    length, reference_length, matched, totals = np.split(sums, [1, 2, 2 + BLEU_ORDER], axis=1)
    is_defined = (totals > 0).all(axis=1) & (matched > 0).any(axis=1)  # else BLEU is 0
    length, reference_length, matched, totals = (
        part[is_defined] for part in (length, reference_length, matched, totals)
    )
    brevity = exp(np.minimum(0, 1 - reference_length / length))[:, 0]
    halvings = 2 ** np.cumsum(matched == 0, axis=1)  # an order without a match counts half as much as the one before
    precisions = np.where(matched > 0, 100 * matched / totals, 100 / (halvings * totals))
    scores = np.zeros(len(sums))
    scores[is_defined] = brevity * exp(log(precisions).sum(axis=1) / BLEU_ORDER)
    return scores


def corpus_bleu(weights: Floats, matches: Floats) -> Floats:
    """sacreBLEU's corpus BLEU of each resample, 0 to 100, from the summed counts of its records.

    Args:
        weights: (resamples, records).
        matches: (records, 10) from `count_bleu_matches`.
    """
    return compute_bleu(np.rint(weights @ matches))


def build_bleu(columns: Columns) -> dict[str, Statistic]:
    """Corpus BLEU against the references."""
    matches = columns["matches"].astype(np.float64)
    return {"bleu": Statistic(partial(corpus_bleu, matches=matches), len(matches))}


def get_bleu_signature(tokenize: str) -> str:
    """sacreBLEU's signature of BLEU with one reference."""
    bleu = BLEU(tokenize=tokenize)
    bleu.num_refs = 1
    return str(bleu.get_signature())


def warn_of_chinese(records: Records, tokenize: str) -> None:
    """Warn if the references are mostly Chinese and BLEU's tokenizer takes a whole sentence for one word."""
    han, characters = np.sum(
        [(len(HAN.findall(record["reference"])), len(record["reference"])) for record in records], axis=0
    )
    if tokenize not in ("zh", "char") and 2 * han > characters:
        logger.warning("the references are mostly Chinese: BLEU needs --tokenize zh, %s does not split words", tokenize)


# chrF


def count_chrf_matches(chrf: CHRF, records: Records) -> NDArray[Any]:
    """Counts of each record that corpus chrF sums: for each order, n-grams of answer, of reference, and in both.

    An answer's n-grams of an order do not count if the reference is too short to have any, as in sacreBLEU.

    Returns:
        Counts, (records, 18).
    """
    answers, references = ([encode_characters("".join(text.split())) for text in texts] for texts in get_texts(records))
    overlaps = count_overlaps(answers, references, chrf.char_order)
    overlaps[:, :, 0] *= overlaps[:, :, 1] > 0
    return overlaps.reshape(len(records), -1)


def count_chrf(records: Records, tokenize: str) -> Columns:
    """The counts that corpus chrF sums."""
    return {"matches": count_in_batches(records, partial(count_chrf_matches, CHRF()))}


def compute_chrf(sums: Floats, beta: float) -> Floats:
    """sacreBLEU's chrF (Popović, 2015) from summed counts: the F-score of mean precision and recall over the orders.

    Orders of which the answers or the references have no n-gram are left out.

    Args:
        sums: (resamples, 3 · orders), in the order of `count_chrf_matches`.
        beta: how many times as important recall is as precision.

    Returns:
        chrF, 0 to 100, (resamples,).
    """
    answer, reference, both = np.moveaxis(sums.reshape(len(sums), -1, 3), 2, 0)
    counts = (answer > 0) & (reference > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = (
            np.where(counts, both / total, 0).sum(axis=1) / counts.sum(axis=1) for total in (answer, reference)
        )
        scores = (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
    return np.where(precision + recall > 0, 100 * scores, 0.0)


def corpus_chrf(weights: Floats, matches: Floats, beta: float) -> Floats:
    """sacreBLEU's corpus chrF of each resample, 0 to 100; it counts characters, so it suits any script.

    Args:
        weights: (resamples, records).
        matches: (records, 18) from `count_chrf_matches`.
        beta: see `compute_chrf`.
    """
    return compute_chrf(np.rint(weights @ matches), beta)


def build_chrf(columns: Columns) -> dict[str, Statistic]:
    """Corpus chrF2 against the references."""
    matches = columns["matches"].astype(np.float64)
    return {"chrf": Statistic(partial(corpus_chrf, matches=matches, beta=CHRF().beta), len(matches))}


def get_chrf_signature(tokenize: str) -> str:
    """sacreBLEU's signature of chrF with one reference; chrF has no tokenizer."""
    chrf = CHRF()
    chrf.num_refs = 1
    return str(chrf.get_signature())
