"""Paired comparisons against plain formulas on the drawn records, and on simulated models with a known difference."""

import csv
import json
import math

import numpy as np
import pytest
import sacrebleu
from reported_progress import Reported
from scored_records import write_statistics

import compare_models
import plot_comparisons
from distill.common.errors import InputError
from distill.evaluation.bootstrap import Resampled, Statistic, draw_weights, resample_all
from distill.evaluation.compare import compare_metric, two_sided_p
from distill.evaluation.comparison_table import Comparison, read_comparisons, write_comparisons
from distill.evaluation.formulas import weighted_mean
from distill.plan.experiment import get_compared_models
from distill.plan.schema import check_config

RESAMPLES, SEED = 200, 5
TEXT = [
    "the",
    "bird",
    "sings",
    "in",
    "an",
    "old",
    "tree",
    "by",
    "river",
    "and",
    "nobody",
    "hears",
    "it",
    "but",
    "miller",
]


def make_records(model, count=25, category="banks", skill=0.5, seed=0):
    """Answers that keep each word of the reference with probability `skill`; all models have the same references."""
    references, rng = np.random.default_rng(seed), np.random.default_rng([seed, sum(map(ord, model))])
    records = []
    for number in range(count):
        reference = references.choice(TEXT, 12)
        answer = np.where(rng.random(12) < skill, reference, rng.choice(TEXT, 12))
        usable = bool(rng.random() < 0.7)
        records.append(
            {
                "category": category,
                "uid": f"{number:04d}",
                "reference": " ".join(reference),
                "prediction": " ".join(answer),
                "finish_reason": "stop",
                "usable": usable,
                "label": float(number % 5),
                "parsed_value": float(rng.normal()) if usable else None,
                "nll": float(rng.uniform(1, 30)),
                "nll_tokens": int(references.integers(5, 20)),  # of the tokenizer that all models share
                "nll_hits": int(rng.integers(0, 5)),
            }
        )
    return records


def write_judged(folder, records):
    path = folder / f"{records[0]['category']}.judged.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def compare(folder, found, *options, pairs=("a:b",), judged=()):
    """Rows of comparisons.csv by (category, pair, metric); `found` is a list of (model, records)."""
    judgements = ["--judged", *judged] if judged else []
    paths = [write_statistics(folder, model, records, *options, *judgements) for model, records in found]
    argv = ["--statistics", *paths, "--pairs", *pairs, "--out", str(folder / "comparisons.csv"), *options]
    compare_models.main([*argv, "--bootstrap", str(RESAMPLES), "--seed", str(SEED)])
    rows = read_comparisons(folder / "comparisons.csv")
    return {(row.category, f"{row.model}:{row.other}", row.metric): row for row in rows}


def plain_scores(records):
    """Some metrics of the records by plain formulas in float64."""
    scored = [record for record in records if record["usable"]]
    bleu = sacrebleu.corpus_bleu([r["prediction"] for r in records], [[r["reference"] for r in records]])
    return {
        "coverage": len(scored) / len(records),
        "mae": sum(abs(r["parsed_value"] - r["label"]) for r in scored) / len(scored),
        "ppl": math.exp(sum(r["nll"] for r in records) / sum(r["nll_tokens"] for r in records)),
        "bits_per_byte": sum(r["nll"] / math.log(2) for r in records)
        / sum(len(r["reference"].encode("utf-8")) for r in records),
        "agreement": sum(r["nll_hits"] for r in records) / sum(r["nll_tokens"] for r in records),
        "bleu": bleu.score,
    }


def test_numbers_equal_those_of_drawn_records(tmp_path):
    """Draw the records of both models together and score every resample by plain formulas."""
    first, second = make_records("a", skill=0.6), make_records("b")
    rows = compare(tmp_path, [("a", first), ("b", second[::-1])], "--answer-key", "delta")
    whole = [plain_scores(records) for records in (first, second)]
    (weights,) = draw_weights(25, RESAMPLES, SEED)
    drawn = [np.repeat(np.arange(25), row.astype(int)) for row in weights]
    sampled = [[plain_scores([records[i] for i in chosen]) for chosen in drawn] for records in (first, second)]
    for metric in whole[0]:
        row = rows["banks", "a:b", metric]
        difference = whole[0][metric] - whole[1][metric]
        differences = np.array([one[metric] - other[metric] for one, other in zip(*sampled, strict=True)])
        at_least = sum(abs(each - difference) >= abs(difference) for each in differences)
        low, high = np.quantile(differences, [0.025, 0.975])
        found = (row.difference, row.ci_low, row.ci_high, row.p_value)
        assert found == pytest.approx((difference, low, high, (1 + at_least) / (1 + RESAMPLES)), rel=1e-9), metric
    assert rows["banks", "a:b", "coverage"].n == 25
    assert rows["banks", "a:b", "mae"].n == min(sum(r["usable"] for r in records) for records in (first, second))


def test_a_student_with_seeds_is_compared_by_the_mean_of_its_replicas(tmp_path):
    """Against plain formulas: scores of each replica on the same drawn records, averaged, then subtracted."""
    names = ["a-seed1", "a-seed2", "a-seed3", "b-seed1", "b-seed2", "teacher"]
    found = {name: make_records(name) for name in names}
    pairs = {
        "a:b": (names[:3], names[3:5]),
        "a:teacher": (names[:3], names[5:]),
        "a-seed2:a-seed1": (["a-seed2"], ["a-seed1"]),
    }
    rows = compare(tmp_path, found.items(), "--answer-key", "delta", pairs=list(pairs))
    (weights,) = draw_weights(25, RESAMPLES, SEED)
    drawn = [np.repeat(np.arange(25), row.astype(int)) for row in weights]
    whole = {name: plain_scores(records) for name, records in found.items()}
    sampled = {
        name: [plain_scores([records[i] for i in chosen]) for chosen in drawn] for name, records in found.items()
    }
    for pair, sides in pairs.items():
        for metric in ("coverage", "mae", "ppl", "bleu"):
            means = [np.mean([whole[name][metric] for name in side]) for side in sides]
            resampled = [np.mean([[one[metric] for one in sampled[name]] for name in side], axis=0) for side in sides]
            row = rows["banks", pair, metric]
            low, high = np.quantile(resampled[0] - resampled[1], [0.025, 0.975])
            assert row[4:7] == pytest.approx((means[0] - means[1], low, high), rel=1e-9), (pair, metric)
            assert (row.seeds, row.other_seeds) == tuple(map(len, sides))
            variances = [np.var([whole[name][metric] for name in side], ddof=1) for side in sides if len(side) > 1]
            assert row.seed_sd == (pytest.approx(sum(variances) ** 0.5, rel=1e-9) if variances else None)
    usable = {name: sum(record["usable"] for record in records) for name, records in found.items()}
    assert rows["banks", "a:b", "mae"].n == min(usable[name] for name in names[:5])


def test_equal_answers_have_no_difference_and_better_ones_a_significant_one(tmp_path):
    found = [
        ("a", make_records("a", skill=0.9)),
        ("b", make_records("b", skill=0.2)),
        ("c", make_records("a", skill=0.9)),
    ]
    rows = compare(tmp_path, found, "--metrics", "bleu", "rouge", "ppl", pairs=["a:b", "b:a", "a:c"])
    for (_, pair, metric), row in rows.items():
        if pair == "a:c":
            assert row[4:8] == (0, 0, 0, 1), metric
        elif metric not in ("ppl", "bits_per_byte", "agreement"):
            assert row.p_value == 1 / (1 + RESAMPLES)
            assert row.ci_low > 0 if pair == "a:b" else row.ci_high < 0
        mirror = rows["banks", ":".join(pair.split(":")[::-1]), metric] if pair != "a:c" else row
        assert (mirror.difference, mirror.p_value) == (-row.difference, row.p_value)


def test_models_of_different_tokenizers_are_compared_by_bits_per_byte(tmp_path, caplog):
    """The same likelihoods over three times the tokens: perplexity would differ, with a small p-value."""
    caplog.set_level("INFO")
    first = make_records("a") + make_records("a", 5, "zebras")
    finer = [record | {"nll_tokens": 3 * record["nll_tokens"], "nll_hits": 1} for record in make_records("a")]
    mostly_finer = finer + make_records("a", 5, "zebras")
    found = [
        (model, [record for record in records if record["category"] == category])
        for model, records in (("a", first), ("b", mostly_finer), ("c", first))
        for category in ("banks", "zebras")
    ]
    judged = write_judged(tmp_path, [r | {"model": m} for m in "abc" for r in first])
    metrics = ("--metrics", "ppl", "fdistill", "bleu")
    rows = compare(tmp_path, found, *metrics, pairs=["a:b", "a:c"], judged=[judged])
    by_pair = {pair: {metric for _, name, metric in rows if name == pair} for pair in ("a:b", "a:c")}
    assert by_pair["a:c"] - by_pair["a:b"] == {"ppl", "agreement", "fdistill_likelihood"}
    assert by_pair["a:b"] == {"bits_per_byte", "fdistill_coverage", "bleu"}
    for category in ("banks", "zebras", "all"):
        assert rows[category, "a:b", "bits_per_byte"][4:8] == (0, 0, 0, 1)
    assert "a:b: their tokenizers split the references differently" in caplog.text
    assert "a:c: their tokenizers" not in caplog.text


def test_interval_and_p_value_hold_on_simulated_pairs():
    """Correlated scores with a known difference: pairing narrows the interval, which covers the truth at its level."""
    rng, held, rejected, trials = np.random.default_rng(3), 0, 0, 400
    for trial in range(trials):
        hard = rng.normal(0, 3, 60)  # difficulty of each record, shared by both models
        models = [hard + rng.normal(mean, 0.5, 60) for mean in (0.2, 0.2)]
        scores = [
            resample_all({"m": Statistic(lambda w, v=values: weighted_mean(w, v), 60)}, 60, 500, seed=trial)["m"]
            for values in models
        ]
        _, low, high, p = compare_metric(*scores)
        held += low <= 0 <= high
        rejected += p < 0.05
        assert high - low < 0.6  # unpaired, with a spread of 3, it would be wider than 2
    assert 0.91 <= held / trials <= 0.98
    assert 0.02 <= rejected / trials <= 0.09


def test_p_value_by_hand():
    assert two_sided_p(np.array([1.0, 2.0, 3.0, 4.0]), 2.0) == 2 / 5  # 4 differs by 2; 1 and 3 differ by less
    assert two_sided_p(np.array([1.0, 2.0, 3.0]), -0.5) == 1
    assert two_sided_p(np.zeros(9), 0.0) == 1


def test_undefined_figures_have_no_interval():
    nan = Resampled(math.nan, np.array([]), 3)
    assert compare_metric(nan, Resampled(1.0, np.array([]), 3)) == (None, None, None, None)
    sparse = Resampled(1.0, np.where(np.arange(100) < 6, np.nan, 1.0), 100)
    assert compare_metric(sparse, Resampled(0.5, np.full(100, 0.5), 100)) == (0.5, None, None, None)
    rounded = Resampled(0.1 + 0.2, np.full(100, 0.1 + 0.2), 100)
    assert compare_metric(rounded, Resampled(0.3, np.full(100, 0.3), 100)) == (0, 0, 0, 1)
    single = Resampled(1.0, np.ones(100), 1)
    assert compare_metric(single, single) == (0, None, None, None)


def test_categories_are_pooled_and_the_teacher_judges(tmp_path):
    found = [
        (model, make_records(model, count, category, seed=count))
        for category, count in (("zebras", 12), ("banks", 8))
        for model in ("a", "b")
    ]
    judged = [
        write_judged(tmp_path, [r | {"model": m} for m, records in found for r in records if r["category"] == category])
        for category in ("zebras", "banks")
    ]
    rows = compare(tmp_path, found, "--metrics", "fdistill", "shape", judged=judged)
    assert list(dict.fromkeys(category for category, _, _ in rows)) == ["zebras", "banks", "all"]
    assert [rows[name, "a:b", "fdistill_coverage"].n for name in ("zebras", "banks", "all")] == [12, 8, 20]
    first, second = (
        plain_scores([record for model, records in found for record in records if model == name]) for name in "ab"
    )
    row = rows["all", "a:b", "fdistill_likelihood"]
    assert row.difference == pytest.approx(first["ppl"] - second["ppl"], rel=1e-12)
    assert rows["all", "a:b", "fdistill_coverage"].difference == pytest.approx(row.difference, rel=1e-12)
    distinct = rows["all", "a:b", "distinct1"]
    assert (distinct.ci_low, distinct.p_value) == (None, None)


def test_other_records_are_refused(tmp_path):
    first, second = make_records("a"), make_records("b")
    with pytest.raises(InputError, match=r"b/banks\S+ expected the records of \S+a/banks\S+ found none of uid 0024"):
        compare(tmp_path, [("a", first), ("b", second[:-1])])
    with pytest.raises(InputError, match=r"a/banks\S+ expected the records of \S+b/banks\S+ found none of uid 0003"):
        compare(tmp_path, [("a", first[:3] + first[4:]), ("b", second)])
    with pytest.raises(InputError, match=r"b/banks\S+ expected each prompt once, found uid 0000 again"):
        compare(tmp_path, [("a", first), ("b", [*second, second[0]])])
    with pytest.raises(InputError, match="pair a:c: expected one of a, b, found c"):
        compare(tmp_path, [("a", first), ("b", second)], pairs=["a:c"])
    other = [record | {"category": "other"} for record in first]
    with pytest.raises(InputError, match="other: expected statistics of a, b, found none of b"):
        compare(tmp_path, [("a", first), ("b", second), ("a", other)])


def test_pairs_of_a_configuration():
    config = check_config(
        {"categories": ["x"], "teacher": {"model": "t"}, "students": {name: {"model": "m"} for name in "ab"}}
    )
    assert get_compared_models(config) == [
        ("a", "a_base"), ("a", "teacher"), ("a", "b"), ("b", "b_base"), ("b", "teacher")
    ]  # fmt: skip


def test_the_figure_has_a_line_per_pair(tmp_path):
    rows = [
        Comparison(category, *pair, metric, 0.5, low, 0.9, 0.02, 20)
        for category in ("banks", "all")
        for pair in (("a", "a_base"), ("a", "teacher"))
        for metric, low in (("ppl", 0.1), ("bleu", -0.1), ("rouge1", 0.2))
    ]
    rows.append(Comparison("all", "a", "b", "bleu", None, None, None, None, 0))
    write_comparisons(tmp_path / "comparisons.csv", rows)
    with open(tmp_path / "comparisons.csv", newline="") as file:
        assert next(csv.reader(file))[-5:] == ["p_value", "n", "seeds", "other_seeds", "seed_sd"]
    for suffix in ("svg", "png"):
        out = tmp_path / f"comparisons.{suffix}"
        plot_comparisons.main(["--comparisons", str(tmp_path / "comparisons.csv"), "--out", str(out)])
    text = (tmp_path / "comparisons.svg").read_text(encoding="utf-8")
    for name in ("a \u2212 a_base", "a \u2212 teacher", "perplexity", "BLEU", "banks", "all", "undefined"):
        assert f">{name}</text>" in text
    assert "ROUGE-1" not in text


def test_the_progress_counts_the_resamples_of_all_distinct_models_and_categories(tmp_path, monkeypatch):
    first, second = make_records("a"), make_records("b", skill=0.7)
    more = [make_records(model, count=10, category="other") for model in ("a", "b")]
    reported = Reported(monkeypatch)
    compare(tmp_path, [("a", first), ("b", second), ("c", second), ("a", more[0]), ("b", more[1]), ("c", more[1])])
    begin, end = reported.get_ends()["comparisons"]
    assert (begin["done"], end["done"]) == (0, 6 * RESAMPLES)  # a and b in two categories and in both together
    assert begin["total"] == end["total"] == 6 * RESAMPLES
    assert end["seconds_left"] == 0
