"""Scores of predictions: text metrics against the teacher's answers, value metrics against the true labels."""

import logging
import math
import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from distill.common.errors import InputError
from distill.evaluation.bootstrap import Estimate, Floats, Statistic, estimate_all
from distill.evaluation.prediction_files import PPL_FIELDS, has_likelihoods, is_judged
from distill.evaluation.text_metrics import build_shape_statistics, ratio_of_sums, rouge_f1

logger = logging.getLogger(__name__)

METRIC_GROUPS = ("answer", "ppl", "bleu", "rouge", "chrf", "shape", "fdistill")
TOKENIZERS = ("13a", "intl", "zh", "char", "none")
FEWEST = 3  # records below which R² and a rank correlation say nothing
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")


def weighted_mean(weights: Floats, values: Floats) -> Floats:
    """Mean of the values that are not NaN in each resample.

    Args:
        weights: (resamples, records).
        values: (records,), NaN for a record that has none.
    """
    present = ~np.isnan(values)
    return weights[:, present] @ values[present] / weights[:, present].sum(axis=1)


def root_mean_square(weights: Floats, errors: Floats) -> Floats:
    """Root of the mean square of the errors that are not NaN; shapes as in `weighted_mean`."""
    return np.sqrt(weighted_mean(weights, errors**2))


def perplexity(weights: Floats, nll: Floats, tokens: Floats) -> Floats:
    """exp(sum of negative log-likelihoods / sum of tokens), so that every token of the set counts alike.

    Args:
        weights: (resamples, records).
        nll: (records,), nats, summed over a record's tokens.
        tokens: (records,).
    """
    return np.exp((weights @ nll) / (weights @ tokens))


def weighted_sum_of_squares(weights: Floats, values: Floats) -> Floats:
    """Sum of squared deviations from each resample's own mean; NaN where only rounding is left of the spread.

    Args:
        weights: (resamples, records).
        values: (records,) or (resamples, records).
    """
    count = weights.sum(axis=1)
    mean = (weights * values).sum(axis=1) / count
    total = (weights * (values - mean[:, None]) ** 2).sum(axis=1)
    scale = np.abs(values).max(initial=0.0)
    return np.where((count >= FEWEST) & (total > count * (1e-9 * scale) ** 2), total, np.nan)


def r_squared(weights: Floats, predicted: Floats, true: Floats) -> Floats:
    """1 − residual sum of squares / total sum of squares, over records that have both values (NaN: has none)."""
    present = ~np.isnan(predicted) & ~np.isnan(true)
    weights, predicted, true = weights[:, present], predicted[present], true[present]
    return 1 - weights @ (true - predicted) ** 2 / weighted_sum_of_squares(weights, true)


def weighted_ranks(weights: Floats, values: Floats) -> Floats:
    """Rank from 1 of each record within each resample, ties sharing their mean rank; shape as the weights."""
    distinct, group = np.unique(values, return_inverse=True)
    starts = np.searchsorted(np.sort(group), np.arange(len(distinct)))
    in_group = np.add.reduceat(weights[:, np.argsort(group, kind="stable")], starts, axis=1)
    return (np.cumsum(in_group, axis=1) - (in_group - 1) / 2)[:, group]


def spearman(weights: Floats, predicted: Floats, true: Floats) -> Floats:
    """Spearman's rank correlation over records that have both values; NaN where either is constant."""
    present = ~np.isnan(predicted) & ~np.isnan(true)
    if not present.any():
        return np.full(len(weights), np.nan)
    weights = weights[:, present]
    first, second = weighted_ranks(weights, predicted[present]), weighted_ranks(weights, true[present])
    middle = (weights.sum(axis=1) + 1)[:, None] / 2
    product = (weights * (first - middle) * (second - middle)).sum(axis=1)
    return product / np.sqrt(weighted_sum_of_squares(weights, first) * weighted_sum_of_squares(weights, second))


def count_bleu_matches(bleu: BLEU, records: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """What corpus BLEU needs of each record: length, reference length, 4 matched and 4 total n-gram counts."""
    scores = [bleu.corpus_score([record["prediction"]], [[record["reference"]]]) for record in records]
    return np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores], dtype=np.float64)


def corpus_bleu(weights: Floats, matches: Floats) -> Floats:
    """sacreBLEU's corpus BLEU, 0 to 100, of each resample, from the summed counts of its records.

    Args:
        weights: (resamples, records).
        matches: (records, 10) from `count_bleu_matches`.
    """
    totals = np.rint(weights @ matches).astype(int).tolist()
    scores = [BLEU.compute_bleu(row[2:6], row[6:10], row[0], row[1], smooth_method="exp") for row in totals]
    return np.array([score.score for score in scores])


def count_chrf_matches(chrf: CHRF, records: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """What corpus chrF needs of each record: n-grams of answer and reference and those in both, for each order."""
    answers, references = ([record[name] for record in records] for name in ("prediction", "reference"))
    return np.array(chrf._extract_corpus_statistics(answers, [references]), dtype=np.float64)


def corpus_chrf(weights: Floats, matches: Floats, chrf: CHRF) -> Floats:
    """sacreBLEU's corpus chrF2, 0 to 100, of each resample; right for any script, since it counts characters.

    Args:
        weights: (resamples, records).
        matches: (records, 18) from `count_chrf_matches`.
    """
    totals = np.rint(weights @ matches).astype(int).tolist()
    return np.array([chrf._compute_f_score(row) for row in totals])


def describe_chrf() -> str:
    """sacreBLEU's signature of chrF with one reference."""
    chrf = CHRF()
    chrf.num_refs = 1
    return str(chrf.get_signature())


def pick_values(records: Sequence[dict[str, Any]]) -> tuple[Floats, Floats]:
    """Predicted and true values, shape (records,), NaN in both where either is not there or the answer not usable."""
    scored = [r["usable"] and r["parsed_value"] is not None and r["label"] is not None for r in records]
    predicted = [r["parsed_value"] if has else math.nan for r, has in zip(records, scored, strict=True)]
    true = [r["label"] if has else math.nan for r, has in zip(records, scored, strict=True)]
    return np.array(predicted, dtype=np.float64), np.array(true, dtype=np.float64)


def build_answer_statistics(records: Sequence[dict[str, Any]]) -> dict[str, Statistic]:
    """Coverage over all records, errors over those with a usable value and a label.

    Direction is the sign: a label of 0 has none and is left out, a predicted 0 for another label is wrong.
    """
    usable = np.array([record["usable"] for record in records], dtype=np.float64)
    predicted, true = pick_values(records)
    scored = int((~np.isnan(true)).sum())
    same_sign = np.where(np.isnan(true) | (true == 0), np.nan, np.sign(predicted) == np.sign(true))
    return {
        "coverage": Statistic(partial(weighted_mean, values=usable), len(records)),
        "mae": Statistic(partial(weighted_mean, values=np.abs(predicted - true)), scored),
        "rmse": Statistic(partial(root_mean_square, errors=predicted - true), scored),
        "r2": Statistic(partial(r_squared, predicted=predicted, true=true), scored),
        "ic": Statistic(partial(spearman, predicted=predicted, true=true), scored),
        "direction_accuracy": Statistic(partial(weighted_mean, values=same_sign), int((~np.isnan(same_sign)).sum())),
    }


def take_column(records: Iterable[dict[str, Any]], field: str) -> Floats:
    """A number of each record, (records,)."""
    return np.array([record[field] for record in records], dtype=np.float64)


def build_likelihood_statistics(records: Sequence[dict[str, Any]], metrics: Iterable[str]) -> dict[str, Statistic]:
    """Of `ppl`: perplexity and agreement; of `fdistill`: likelihood and coverage of that package (arXiv 2307.15190).

    `ppl` and `fdistill_likelihood` are the model's perplexity of the teacher's answers, and `agreement` is the share of
    their tokens that are the model's likeliest; `fdistill_coverage` is the teacher's perplexity of the model's answers.
    """
    statistics: dict[str, Statistic] = {}
    if has_likelihoods(records):
        nll, tokens, hits = (take_column(records, field) for field in PPL_FIELDS)
        likelihood = Statistic(partial(perplexity, nll=nll, tokens=tokens), len(records))
        if "ppl" in metrics:
            statistics["ppl"] = likelihood
            statistics["agreement"] = Statistic(partial(ratio_of_sums, above=hits, below=tokens), len(records))
        if "fdistill" in metrics:
            statistics["fdistill_likelihood"] = likelihood
    if "fdistill" in metrics and is_judged(records):
        nll, tokens = (take_column(records, field) for field in ("teacher_nll", "teacher_nll_tokens"))
        statistics["fdistill_coverage"] = Statistic(partial(perplexity, nll=nll, tokens=tokens), len(records))
    return statistics


def build_text_statistics(
    records: Sequence[dict[str, Any]], metrics: Iterable[str], bleu: BLEU
) -> dict[str, Statistic]:
    """Likelihoods, BLEU, ROUGE, chrF and shape, over all records, also those whose answer is not usable."""
    count, statistics = len(records), build_likelihood_statistics(records, metrics)
    if "bleu" in metrics:
        statistics["bleu"] = Statistic(partial(corpus_bleu, matches=count_bleu_matches(bleu, records)), count)
    if "rouge" in metrics:
        rouge = [rouge_f1(record["reference"], record["prediction"]) for record in records]
        for name in ("rouge1", "rouge2", "rougeL"):
            values = np.array([scores[name] for scores in rouge])
            statistics[name] = Statistic(partial(weighted_mean, values=values), count)
    if "chrf" in metrics:
        chrf = CHRF()
        matches = count_chrf_matches(chrf, records)
        statistics["chrf"] = Statistic(partial(corpus_chrf, matches=matches, chrf=chrf), count)
    return statistics | (build_shape_statistics(records) if "shape" in metrics else {})


def build_statistics(
    records: Sequence[dict[str, Any]], metrics: Iterable[str], answer_key: str, bleu: BLEU
) -> dict[str, Statistic]:
    """All metrics of the groups, in the order of a metrics file; arguments as of `score_records`."""
    statistics = build_answer_statistics(records) if "answer" in metrics and answer_key else {}
    return statistics | build_text_statistics(records, metrics, bleu)


def warn_of_unsplit_chinese(records: Sequence[dict[str, Any]], tokenize: str) -> None:
    """Say that BLEU sees a whole Chinese sentence as one word under any tokenizer but `zh` and `char`."""
    text = "".join(record["reference"] for record in records)
    if tokenize not in ("zh", "char") and 2 * len(HAN.findall(text)) > len(text):
        logger.warning("the references are mostly Chinese: BLEU needs --tokenize zh, %s does not split words", tokenize)


def score_records(
    records: Sequence[dict[str, Any]], metrics: Sequence[str], answer_key: str, tokenize: str, resamples: int, seed: int
) -> dict[str, Any]:
    """The content of a metrics file: one entry a metric, then intervals, n, counts and settings.

    Args:
        records: from `load_predictions`, at least one.
        metrics: of METRIC_GROUPS; `answer` is left out where `answer_key` is empty (no contract to keep), `ppl` and
            `fdistill` where no likelihood was measured.
        tokenize: sacreBLEU's tokenizer, of TOKENIZERS.
        resamples: of the bootstrap; 0 for no intervals.
        seed: of the bootstrap.

    Raises:
        InputError: there is no record.
    """
    if not records:
        raise InputError("expected at least one prediction, found none")
    if "ppl" in metrics and not has_likelihoods(records):
        logger.info("the predictions hold no likelihoods: no perplexity")
    bleu = BLEU(tokenize=tokenize)
    statistics = build_statistics(records, metrics, answer_key, bleu)
    if "bleu" in metrics:
        warn_of_unsplit_chinese(records, tokenize)
    estimates = estimate_all(statistics, len(records), resamples, seed)
    return arrange_scores(estimates, count_records(records)) | {
        "settings": {
            "answer_key": answer_key,
            "bleu_signature": str(bleu.get_signature()) if "bleu" in metrics else None,
            **({"chrf_signature": describe_chrf()} if "chrf" in metrics else {}),
            "bootstrap": resamples,
            "seed": seed,
        }
    }


def count_records(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many records there are, and of what kind."""
    return {
        "records": len(records),
        "usable": sum(record["usable"] for record in records),
        "with_label": sum(record["label"] is not None for record in records),
        "truncated": sum(record["finish_reason"] == "length" for record in records),
    }


def arrange_scores(estimates: dict[str, Estimate], counts: dict[str, int]) -> dict[str, Any]:
    """Estimates as they stand in a metrics file: `metric: value`, and beside them intervals, n and counts."""
    return {
        **{name: estimate.value for name, estimate in estimates.items()},
        "intervals": {name: [estimate.low, estimate.high] for name, estimate in estimates.items()},
        "n": {name: estimate.n for name, estimate in estimates.items()},
        "counts": counts,
    }
