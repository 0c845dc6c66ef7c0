"""Means over seeds against plain NumPy formulas on the drawn records."""

import json
import math

import numpy as np
import pytest
from scored_records import write_statistics

import average_scores
import tabulate_scores
from distill.common.errors import InputError
from distill.evaluation.bootstrap import Resampled, draw_weights
from distill.evaluation.score_table import read_scores
from distill.evaluation.seed_means import average

RESAMPLES, SEED, COUNT = 150, 3, 20


def make_records(model, category="banks", count=COUNT):
    """Values with a label of each record, of which some are unusable; all models have the same references."""
    rng = np.random.default_rng(sum(map(ord, model + category)))
    records = []
    for number in range(count):
        usable = bool(rng.random() < 0.8)
        records.append(
            {
                "category": category,
                "uid": f"{number:03d}",
                "reference": f"answer {number}",
                "prediction": "an answer",
                "finish_reason": "stop",
                "usable": usable,
                "label": float(number % 4),
                "parsed_value": float(rng.normal()) if usable else None,
            }
        )
    return records


def run(folder, found, name="kd", category="banks"):
    """The metrics file of the mean over the given (model, records)."""
    options = ["--metrics", "answer", "--answer-key", "delta"]
    paths = [write_statistics(folder, model, records, *options) for model, records in found]
    out = folder / name / f"{category}.metrics.json"
    average_scores.main(
        ["--statistics", *paths, *options, "--out", str(out), "--bootstrap", str(RESAMPLES), "--seed", str(SEED)]
    )
    return out


def measure(records, chosen):
    """Coverage and mean absolute error of the chosen records, by plain formulas."""
    picked = [records[i] for i in chosen]
    errors = [abs(one["parsed_value"] - one["label"]) for one in picked if one["usable"]]
    return np.array([len(errors) / len(picked), np.mean(errors)])


def test_mean_interval_and_spread_equal_plain_formulas(tmp_path):
    found = [(f"kd-seed{seed}", make_records(f"kd-seed{seed}")) for seed in (1, 2, 3)]
    path = run(tmp_path, [(found[0][0], found[0][1][::-1]), *found[1:]])  # the order of lines does not matter
    table = tmp_path / "metrics.csv"
    tabulate_scores.main(["--metrics", str(path), "--out", str(table)])
    rows = {row.metric: row for row in read_scores(table)}
    (weights,) = draw_weights(COUNT, RESAMPLES, SEED)
    drawn = [np.repeat(np.arange(COUNT), row.astype(int)) for row in weights]
    whole = np.array([measure(records, range(COUNT)) for _, records in found])
    resampled = np.mean([[measure(records, chosen) for chosen in drawn] for _, records in found], axis=0)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    for place, metric in enumerate(("coverage", "mae")):
        row = rows[metric]
        expected = (whole[:, place].mean(), low[place], high[place])
        assert (row.value, row.ci_low, row.ci_high) == pytest.approx(expected, rel=1e-9)
        assert row.seed_sd == pytest.approx(np.std(whole[:, place], ddof=1), rel=1e-9)
        assert (row.model, row.seeds) == ("kd", 3)
    assert rows["coverage"].n == COUNT
    assert rows["mae"].n == min(sum(record["usable"] for record in records) for _, records in found)


def test_several_categories_are_pooled(tmp_path):
    found = [(f"kd-seed{seed}", make_records(f"kd-seed{seed}", name)) for seed in (1, 2) for name in ("b", "a")]
    content = json.loads(run(tmp_path, found, category="all").read_text(encoding="utf-8"))
    pooled = [
        measure(sum((records for model, records in found if model == name), []), range(2 * COUNT))
        for name in ("kd-seed1", "kd-seed2")
    ]
    assert [content["coverage"], content["mae"]] == pytest.approx(list(np.mean(pooled, axis=0)), rel=1e-12)
    assert (content["seeds"], content["counts"]["records"]) == (2, 2 * COUNT)


def test_the_spread_of_one_seed_and_of_an_undefined_score_is_unknown():
    one, nothing = Resampled(0.5, np.array([0.4, 0.6]), 9), Resampled(math.nan, np.array([math.nan, 1.0]), 0)
    alone = average([one])
    assert (alone.score.value, alone.sd, alone.seeds) == (0.5, None, 1)
    mean = average([one, nothing])
    assert math.isnan(mean.score.value)
    assert np.array_equal(mean.score.resampled, [math.nan, 0.8], equal_nan=True)
    assert (mean.sd, mean.seeds, mean.score.n) == (None, 2, 0)


def test_only_replicas_of_one_student_with_the_same_records_are_averaged(tmp_path):
    first = ("kd-seed1", make_records("kd-seed1"))
    for other in ("kd", "kdd-seed2", "kd-seed2_int8"):
        with pytest.raises(InputError, match=f"expected replicas NAME-seedN of one student, found {other} among"):
            run(tmp_path, [first, (other, make_records(other))])
    with pytest.raises(InputError, match="kd-seed2: expected the records of kd-seed1, found none of uid 019"):
        run(tmp_path, [first, ("kd-seed2", make_records("kd-seed2", count=COUNT - 1))])
