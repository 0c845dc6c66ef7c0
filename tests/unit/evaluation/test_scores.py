"""Scores against independent formulas: scipy, rouge-score, sacreBLEU on drawn records, and plain loops."""

import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest
import sacrebleu
from reported_progress import Reported
from sacrebleu.metrics.bleu import BLEU
from scipy import stats
from scored_records import score_records

import score_predictions
from distill.common.errors import InputError
from distill.evaluation.bootstrap import Statistic, draw_weights, estimate_all, percentile_interval
from distill.evaluation.formulas import perplexity, r_squared, spearman, weighted_mean
from distill.evaluation.metrics import needs_likelihoods
from distill.evaluation.options import ScoringOptions
from distill.evaluation.prediction_files import load_predictions
from distill.evaluation.sacrebleu_metrics import corpus_bleu, count_bleu_matches
from distill.generation.repetition import split_tokens

WORDS = ["me", "profit", "beta", "holding", "rises", "falls", "by", "3", "12", "%", ",", ".", "→", "<answer>"]


def make_text(rng, longest=30):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(longest)))


def make_record(number=0, **changes):
    record = {
        "id": number,
        "uid": f"uid{number:04d}",
        "category": "banks",
        "origin": "grpo",
        "system": "s",
        "prompt": "p",
        "reference": "the holding falls by 3 percent",
        "prediction": "the holding falls by 3 percent",
        "finish_reason": "stop",
        "generated_tokens": 6,
        "label": 0.1,
        "parsed_value": 0.2,
        "usable": True,
        "problem": None,
        "nll": 3.0,
        "nll_tokens": 6,
        "nll_hits": 4,
    }
    return record | changes


def make_records(count, seed=0):
    rng = random.Random(seed)
    records = []
    for number in range(count):
        usable = rng.random() < 0.8
        records.append(
            make_record(
                number,
                reference=make_text(rng),
                prediction=make_text(rng),
                label=rng.choice([None, 0.0, round(rng.gauss(0, 1), 1), round(rng.gauss(0, 1), 1)]),
                parsed_value=round(rng.gauss(0, 1), 1) if usable else None,
                usable=usable,
                finish_reason="stop" if usable else "length",
                nll=rng.uniform(1, 50),
                nll_tokens=rng.randrange(20, 40),
                nll_hits=rng.randrange(20),
            )
        )
    return records


def score(records, metrics=("bleu", "rouge", "ppl", "answer"), key="holding_log_delta", tokenize="13a", resamples=200):
    return score_records(records, ScoringOptions(list(metrics), tokenize, resamples, seed=7), key)


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


# Scores against independent formulas


def test_answer_metrics_equal_plain_formulas():
    records = make_records(60)
    scores = score(records)
    pairs = [(r["parsed_value"], r["label"]) for r in records if r["usable"] and r["label"] is not None]
    predicted, true = (np.array(column) for column in zip(*pairs, strict=True))
    signed = [(p, t) for p, t in pairs if t != 0]
    assert 0 < len(signed) < len(pairs) < len(records)
    assert scores["coverage"] == pytest.approx(sum(r["usable"] for r in records) / 60)
    assert scores["mae"] == pytest.approx(sum(abs(p - t) for p, t in pairs) / len(pairs))
    assert scores["rmse"] == pytest.approx(math.sqrt(sum((p - t) ** 2 for p, t in pairs) / len(pairs)))
    assert scores["r2"] == pytest.approx(1 - sum((true - predicted) ** 2) / sum((true - true.mean()) ** 2))
    assert scores["ic"] == pytest.approx(stats.spearmanr(predicted, true).statistic)
    assert scores["direction_accuracy"] == pytest.approx(
        sum((p > 0) == (t > 0) and p != 0 for p, t in signed) / len(signed)
    )
    assert scores["n"] == {
        "coverage": 60,
        **dict.fromkeys(["mae", "rmse", "r2", "ic"], len(pairs)),
        "direction_accuracy": len(signed),
        **dict.fromkeys(["ppl", "bits_per_byte", "agreement", "bleu", "rouge1", "rouge2", "rougeL"], 60),
    }
    assert scores["counts"] == {
        "records": 60,
        "usable": sum(r["usable"] for r in records),
        "with_label": sum(r["label"] is not None for r in records),
        "truncated": sum(r["finish_reason"] == "length" for r in records),
    }


def test_perplexity_weighs_tokens_not_records():
    records = [make_record(0, nll=10.0, nll_tokens=1), make_record(1, nll=10.0, nll_tokens=99)]
    assert score(records)["ppl"] == pytest.approx(math.exp(20 / 100))


def test_bits_per_byte_do_not_depend_on_the_tokens():
    references = ["plain", "é漢🙂"]  # 5 bytes, and 2 + 3 + 4 in UTF-8
    records = [make_record(n, reference=text, nll=3.0 + n, nll_tokens=7) for n, text in enumerate(references)]
    expected = (3.0 + 4.0) / math.log(2) / (5 + 9)
    assert score(records)["bits_per_byte"] == pytest.approx(expected, rel=1e-12)
    assert score([record | {"nll_tokens": 21} for record in records])["bits_per_byte"] == pytest.approx(expected)


def test_agreement_is_the_share_of_all_tokens():
    records = [make_record(0, nll_hits=1, nll_tokens=1), make_record(1, nll_hits=33, nll_tokens=99)]
    assert score(records)["agreement"] == pytest.approx(34 / 100)


def test_bleu_equals_sacrebleu():
    records = make_records(40)
    expected = sacrebleu.corpus_bleu([r["prediction"] for r in records], [[r["reference"] for r in records]])
    assert expected.score > 1
    assert score(records)["bleu"] == pytest.approx(expected.score, abs=1e-9)


def test_tokens_of_any_script():
    assert split_tokens("Holding_log_delta: -0.08") == ["holding", "log", "delta", "0", "08"]
    assert split_tokens("增加持股12%，café") == ["增", "加", "持", "股", "12", "café"]


def test_perfect_chinese_answer_scores_100_and_a_wrong_one_less():
    texts = ["根据基本面的变化，建议小幅减少持股。", "盈利上升，建议增加持股百分之三。"]
    perfect = score([make_record(i, reference=t, prediction=t) for i, t in enumerate(texts)], tokenize="zh")
    crossed = score([make_record(i, reference=t, prediction=texts[1 - i]) for i, t in enumerate(texts)], tokenize="zh")
    for metric in ("bleu", "rouge1", "rouge2", "rougeL"):
        assert perfect[metric] == pytest.approx(100)
        assert crossed[metric] < 60
    assert crossed["rougeL"] > 10


def test_chinese_with_13a_gives_a_warning(caplog):
    score([make_record(reference="根据基本面的变化，建议小幅减少持股。")])
    assert "--tokenize zh" in caplog.text
    caplog.clear()
    score([make_record()])
    assert caplog.text == ""


# Undefined scores are null, and every file is valid JSON


@pytest.mark.parametrize(
    ("changes", "undefined"),
    [
        ([{}], {"r2", "ic"}),
        ([{"label": 0.1, "parsed_value": 0.2}, {"label": 0.3, "parsed_value": 0.5}], {"r2", "ic"}),
        ([{"label": 0.1, "parsed_value": v / 10} for v in range(12)], {"r2", "ic"}),  # their mean is not exactly 0.1
        ([{"usable": False, "parsed_value": None}] * 5, {"mae", "rmse", "r2", "ic", "direction_accuracy"}),
        ([{"label": None}] * 5, {"mae", "rmse", "r2", "ic", "direction_accuracy"}),
        ([{"label": 0.1, "parsed_value": v} for v in (0.1, 0.2, 0.3, 0.4)], {"r2", "ic"}),
        ([{"label": v, "parsed_value": 0.1} for v in (0.1, 0.2, 0.3, 0.4)], {"ic"}),
        ([{"label": 0, "parsed_value": v} for v in (0.1, 0.2, 0.3, 0.4)], {"r2", "ic", "direction_accuracy"}),
        ([{"nll_tokens": 0}] * 5, {"ppl", "agreement", "r2", "ic"}),
        ([{"nll": 1e300}] * 5, {"ppl", "r2", "ic"}),
    ],
)
def test_undefined_scores_are_null(changes, undefined, recwarn):
    scores = score([make_record(i, **change) for i, change in enumerate(changes)])
    assert {name for name in scores["n"] if scores[name] is None} == undefined
    assert all(scores["intervals"][name] == [None, None] for name in undefined)
    json.dumps(scores, allow_nan=False)
    assert not recwarn.list


def test_empty_texts_score_0():
    scores = score([make_record(i, prediction="") for i in range(5)])
    assert (scores["bleu"], scores["rougeL"]) == (0, 0)


def test_one_record_has_no_interval():
    scores = score([make_record()])
    assert scores["mae"] == pytest.approx(0.1)
    assert scores["intervals"]["mae"] == [None, None]


def test_without_an_answer_key_no_answer_metrics():
    scores = score(make_records(10), key="")
    assert list(scores["n"]) == ["ppl", "bits_per_byte", "agreement", "bleu", "rouge1", "rouge2", "rougeL"]


# The bootstrap


def test_weighted_statistics_equal_those_of_the_drawn_records():
    """A resample's weights give the same score as repeating the records, for every kind of statistic."""
    records = make_records(30, seed=5)
    rng = np.random.default_rng(1)
    values, others = rng.integers(0, 6, 30).astype(float), rng.integers(0, 6, 30).astype(float)
    values[[3, 8]] = np.nan
    nll, tokens = rng.uniform(1, 9, 30), rng.integers(1, 9, 30).astype(float)
    matches = count_bleu_matches(BLEU(), records)
    (weights,) = draw_weights(30, 25, seed=2)
    assert (weights.sum(axis=1) == 30).all()
    found = {
        "mean": weighted_mean(weights, values),
        "ppl": perplexity(weights, nll, tokens),
        "r2": r_squared(weights, values, others),
        "ic": spearman(weights, values, others),
        "bleu": corpus_bleu(weights, matches),
    }
    for row, weight in enumerate(weights):
        drawn = np.repeat(np.arange(30), weight.astype(int))
        x, y = values[drawn], others[drawn]
        x, y = x[~np.isnan(x)], y[~np.isnan(x)]
        bleu = sacrebleu.corpus_bleu(
            [records[i]["prediction"] for i in drawn], [[records[i]["reference"] for i in drawn]]
        )
        expected = {
            "mean": x.mean(),
            "ppl": math.exp(nll[drawn].sum() / tokens[drawn].sum()),
            "r2": 1 - ((y - x) ** 2).sum() / ((y - y.mean()) ** 2).sum(),
            "ic": stats.spearmanr(x, y).statistic,
            "bleu": bleu.score,
        }
        assert {name: column[row] for name, column in found.items()} == pytest.approx(expected, rel=1e-9)


def test_resamples_are_uniform_draws():
    (weights,) = draw_weights(10, 20_000, seed=0)
    assert weights.mean(axis=0) == pytest.approx(np.ones(10), abs=0.03)
    assert weights.var(axis=0) == pytest.approx(np.full(10, 0.9), abs=0.05)  # binomial: 10 · 0.1 · 0.9


def test_resamples_do_not_depend_on_the_block_size(monkeypatch):
    whole = np.concatenate(list(draw_weights(7, 50, seed=3)))
    monkeypatch.setattr("distill.evaluation.bootstrap.BLOCK_CELLS", 21)
    blocks = list(draw_weights(7, 50, seed=3))
    assert len(blocks) == 17
    assert (np.concatenate(blocks) == whole).all()


def test_interval_holds_the_true_mean_about_95_times_in_100():
    """For normal samples of 60, the coverage of a percentile interval is slightly below its level."""
    rng = np.random.default_rng(11)
    held = 0
    for trial in range(400):
        sample = rng.normal(3.0, 2.0, 60)
        statistic = Statistic(lambda weights, sample=sample: weighted_mean(weights, sample), 60)
        estimate = estimate_all({"mean": statistic}, 60, 1000, seed=trial)["mean"]
        held += estimate.low <= 3.0 <= estimate.high
    assert 0.91 <= held / 400 <= 0.98


def test_interval_width_is_that_of_the_normal_approximation():
    sample = np.random.default_rng(0).normal(0, 1, 400)
    statistic = Statistic(lambda weights: weighted_mean(weights, sample), 400)
    estimate = estimate_all({"mean": statistic}, 400, 4000, seed=1)["mean"]
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * sample.std() / 20, rel=0.05)


def test_too_many_undefined_resamples_give_no_interval():
    values = np.arange(100.0)
    values[:5] = np.nan
    assert percentile_interval(values) == pytest.approx(np.quantile(values[5:], [0.025, 0.975]))
    values[:6] = np.nan
    assert percentile_interval(values) is None
    assert percentile_interval(np.array([])) is None


def test_same_seed_same_scores_in_any_order_of_records_and_files(tmp_path):
    records = make_records(30)
    forward = [write(tmp_path / "a", records[:10]), write(tmp_path / "b", records[10:])]
    backward = [write(tmp_path / "c", records[::-1][:12]), write(tmp_path / "d", records[::-1][12:])]
    scores = [score(load_predictions(paths, True)) for paths in (forward, forward[::-1], backward)]
    assert scores[0] == scores[1] == scores[2]
    other_seed = score_records(load_predictions(forward), ScoringOptions(["answer"], "13a", 200, seed=8), "key")
    assert other_seed["mae"] == scores[0]["mae"]
    assert other_seed["intervals"]["mae"] != scores[0]["intervals"]["mae"]


# The script and its input


def test_script_pools_files_and_writes_the_documented_form(tmp_path):
    a, b = write(tmp_path / "a", make_records(10)), write(tmp_path / "b", [make_record(99, category="other")])
    out = tmp_path / "out" / "all.metrics.json"
    score_predictions.main(["--predictions", str(a), str(b), "--answer-key", "key", "--out", str(out)])
    scores = json.loads(out.read_text(encoding="utf-8"))
    assert scores["counts"]["records"] == 11
    assert set(scores) == set(scores["n"]) | {"intervals", "n", "counts", "settings"}
    assert scores["settings"]["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
    for name, (low, high) in scores["intervals"].items():
        assert scores[name] is None or low is None or low <= scores[name] <= high, name


def test_all_problems_are_named_at_once(tmp_path):
    records = [make_record(usable="yes"), make_record(label=True), make_record(nll=None)]
    del records[1]["prediction"]
    path = write(tmp_path / "bad.jsonl", records)
    with pytest.raises(InputError) as error:
        load_predictions([path, write(tmp_path / "empty.jsonl", [])], True)
    message = str(error.value)
    assert message.startswith("5 problems in the predictions")
    assert f"{path}:1: usable: expected true or false, found 'yes'" in message
    assert f"{path}:2: prediction: expected a string, but the field is missing" in message
    assert f"{path}:2: label: expected a finite number or null, found True" in message
    assert f"{path}:3: nll: expected a finite number (nats), found None" in message
    assert "empty.jsonl: expected at least one prediction, found an empty file" in message


def test_nll_is_needed_for_perplexity_only(tmp_path):
    path = write(tmp_path / "a.jsonl", [make_record(nll=None, nll_tokens=0)])
    assert len(load_predictions([path], needs_likelihoods(["bleu", "rouge", "answer"]))) == 1


def test_likelihoods_of_some_files_alone_leave_perplexity_out(tmp_path):
    """As of teachers with different engines; a file's own scores have what it has."""
    measured = make_record(category="a", nll=1.0, nll_tokens=2, nll_hits=1)
    other = {name: value for name, value in make_record(category="b").items() if not name.startswith("nll")}
    paths = write(tmp_path / "a.jsonl", [measured]), write(tmp_path / "b.jsonl", [other])
    options = ScoringOptions(metrics=["ppl", "bleu"], bootstrap=0)
    found = [score_records(load_predictions(some, True), options, "") for some in (paths[:1], paths[1:], paths)]
    assert ["ppl" in scores for scores in found] == [True, False, False]
    assert all("bleu" in scores for scores in found)


def test_scoring_loads_no_heavy_library():
    """The demo runs about twenty scoring jobs, and imports take most of their time."""
    code = "import sys, score_predictions; print(*{'torch', 'pandas', 'matplotlib'} & set(sys.modules))"
    scripts = score_predictions.__file__.rsplit("/", 1)[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=scripts, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_counts_and_resamples_are_reported(tmp_path, monkeypatch):
    path = tmp_path / "a.predictions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in make_records(12)))
    reported = Reported(monkeypatch)
    score_predictions.main(["--predictions", str(path), "--bootstrap", "50", "--out", str(tmp_path / "a.json")])
    ends = reported.get_ends()
    assert list(ends) == ["counts of 12 records", "bootstrap"]
    for _, last in ends.values():
        assert last["done"] == last["total"] > 0
    assert ends["bootstrap"][1]["total"] == 50
