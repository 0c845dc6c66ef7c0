"""chrF against sacreBLEU on drawn records, the shape of answers against plain counts, and lines for other scorers."""

import json
import math
import random
import unicodedata
from collections import Counter

import numpy as np
import pytest
import sacrebleu
from sacrebleu.metrics.chrf import CHRF

import score_predictions
from distill.evaluation.options import ScoringOptions
from distill.evaluation.scores import score_records
from distill.evaluation.text_metrics import (
    build_shape_statistics,
    corpus_chrf,
    count_chrf_matches,
    rouge_f1,
)
from distill.generation.repetition import split_tokens

CHINESE = ["诸法因缘而生，", "诸行无常。", "心如明镜台", "时时勤拂拭", "profit 3 %", "me ↑"]


def make_records(count, seed=0):
    rng = random.Random(seed)

    def text():
        return " ".join(rng.choice(CHINESE) for _ in range(rng.randrange(8)))

    fixed = {"category": "c", "finish_reason": "stop", "usable": True, "label": None, "parsed_value": None}
    return [{"uid": f"u{n}", "reference": text(), "prediction": text(), **fixed} for n in range(count)]


def score(records, *metrics, resamples=0):
    return score_records(records, ScoringOptions(list(metrics), "zh", resamples, 42), "")


def test_chrf_of_a_resample_is_sacrebleus():
    records = make_records(30)
    chrf = CHRF()
    matches = count_chrf_matches(chrf, records)
    generator = np.random.default_rng(0)
    for _ in range(20):
        drawn = generator.integers(0, 30, 30)
        weights = np.bincount(drawn, minlength=30).astype(float)[None]
        answers, references = ([records[n][name] for n in drawn] for name in ("prediction", "reference"))
        expected = sacrebleu.corpus_chrf(answers, [references]).score
        assert corpus_chrf(weights, matches, chrf)[0] == pytest.approx(expected, abs=1e-9)


def test_a_perfect_chinese_answer_scores_100_and_a_wrong_one_little():
    texts = {"reference": "诸法因缘而生，诸法因缘而灭。"}
    record = make_records(1)[0] | texts
    perfect = score([record | {"prediction": texts["reference"]}], "bleu", "rouge", "chrf")
    wrong = score([record | {"prediction": "今天天气很好，我们去公园散步。"}], "bleu", "rouge", "chrf")
    for name in ("bleu", "rouge1", "rougeL", "chrf"):
        assert perfect[name] == pytest.approx(100)
        assert wrong[name] < 12
    assert perfect["settings"]["chrf_signature"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0")


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [
        ("मेरी बेटी", "मेरा बेटा", 0),  # Hindi: "my daughter", "my son"
        ("मेरी बेटी", "मेरी बहन", 50),
        ("กลิ้ง", "กลัง", 0),  # Thai, with other vowel and tone marks
        ("שָׁלוֹם רַב", "שָׁלוֹם רֹב", 50),  # pointed Hebrew
        ("عِلْمٌ نَافِعٌ", "عَلَمٌ نَافِعٌ", 50),  # vocalised Arabic
        ("می\u200cخواهم", "می\u200cروم", 0),  # Persian, with a zero-width non-joiner
    ],
)
def test_combining_marks_belong_to_their_word(reference, prediction, expected):
    found = rouge_f1(reference, prediction)
    assert found["rouge1"] == found["rougeL"] == pytest.approx(expected)
    assert rouge_f1(reference, reference)["rouge1"] == pytest.approx(100)
    assert split_tokens(reference) == reference.split()
    record = make_records(1)[0] | {"reference": "x", "prediction": reference}
    assert score([record], "shape")["length_ratio"] == len(reference.split())


def test_decomposed_text_equals_composed_text():
    text = "Café Ångström が 한국어 क़लम"
    decomposed = unicodedata.normalize("NFD", text)
    assert decomposed != text
    assert split_tokens(decomposed) == split_tokens(text)
    assert rouge_f1(text, decomposed)["rouge2"] == pytest.approx(100)
    assert split_tokens("が\u3099 葛\U000e0100 İstanbul ☀️") == ["が\u3099", "葛\U000e0100", "i\u0307stanbul"]


def test_shape_equals_plain_counts():
    records = make_records(40, seed=3)
    found = score(records, "shape", resamples=50)
    answers = [split_tokens(record["prediction"]) for record in records]
    references = [split_tokens(record["reference"]) for record in records]
    assert found["length_ratio"] == pytest.approx(sum(map(len, answers)) / sum(map(len, references)))
    repeated = total = 0
    for tokens in answers:
        runs = Counter(tuple(tokens[at : at + 4]) for at in range(len(tokens) - 3))
        repeated, total = repeated + sum(n - 1 for n in runs.values()), total + runs.total()
    assert found["repetition"] == pytest.approx(repeated / total)
    assert 0 < found["repetition"] < 1
    for n in (1, 2):
        grams = [tuple(tokens[at : at + n]) for tokens in answers for at in range(len(tokens) - n + 1)]
        assert found[f"distinct{n}"] == pytest.approx(len(set(grams)) / len(grams))
        assert found["intervals"][f"distinct{n}"] == [None, None]  # a record drawn twice would repeat its n-grams
    assert found["intervals"]["length_ratio"][0] < found["length_ratio"] < found["intervals"]["length_ratio"][1]


def test_undefined_shapes_are_null():
    record = make_records(1)[0] | {"reference": "", "prediction": ""}
    found = score([record], "shape")
    assert [found[name] for name in ("length_ratio", "repetition", "distinct1", "distinct2")] == [None] * 4
    values = build_shape_statistics([record])["distinct1"].function(np.ones((1, 1)))
    assert math.isnan(values[0])


def test_lines_for_other_scorers(tmp_path):
    records = make_records(5)
    records[0] |= {"prediction": "two\nlines\r\nand\u2028more ", "reference": "\ta  b"}
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    argv = ["--predictions", str(path), "--metrics", "chrf", "--out", str(tmp_path / "m.json")]
    outs = ["--answers-out", str(tmp_path / "a.hyp.txt"), "--references-out", str(tmp_path / "a.ref.txt")]
    score_predictions.main([*argv, *outs])
    answers, references = ((tmp_path / f"a.{kind}.txt").read_text().split("\n") for kind in ("hyp", "ref"))
    assert len(answers) == len(references) == 6  # five lines, each with a line feed
    assert "two lines and more" in answers
    assert references[answers.index("two lines and more")] == "a b"
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(answers[:5], [references[:5]]).score, abs=2)
