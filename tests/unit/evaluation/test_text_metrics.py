"""chrF against sacreBLEU on drawn records, the shape of answers against plain counts, and lines for other scorers."""

import json
import math
import random
import unicodedata
from collections import Counter

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh
from scored_records import score_records

import score_predictions
from distill.evaluation.ngrams import BATCH
from distill.evaluation.options import TOKENIZERS, ScoringOptions
from distill.evaluation.sacrebleu_metrics import (
    FastTokenizerZh,
    compute_bleu,
    compute_chrf,
    corpus_chrf,
    count_bleu,
    count_chrf,
    count_chrf_matches,
)
from distill.evaluation.text_metrics import (
    SAMPLE_SIZE,
    SAMPLES,
    build_shape,
    count_rouge,
    count_shape,
    draw_samples,
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


MIXED = "ab19.,-;: ()[]~&%\t\n，。诸法行心がé한\u0301\u200d\u3000\u1100🙂"


def make_texts(seed, count, longest=40, letters=MIXED):
    """Texts of a few letters, so that n-grams repeat; some are empty."""
    rng = random.Random(seed)
    return ["".join(rng.choice(letters) for _ in range(rng.randrange(longest))) for _ in range(count)]


def make_pairs(seed, count, **settings):
    """Answers with references; one in five is that of the reference, and some are empty."""
    rng = random.Random(seed)
    texts = zip(make_texts(seed, count, **settings), make_texts(-seed - 1, count, **settings), strict=True)
    return [{"reference": one, "prediction": one if rng.random() < 0.2 else other} for one, other in texts]


class AnyScript(Tokenizer):
    """`split_tokens` for rouge-score."""

    def tokenize(self, text):
        return split_tokens(text)


def test_rouge_equals_rouge_score_to_the_last_bit():
    pairs = make_pairs(1, 2 * BATCH + 3, longest=90) + make_pairs(2, 500, longest=9)
    pairs += make_pairs(3, 200, longest=120, letters="abc  ")
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=AnyScript())
    expected = [scorer.score(pair["reference"], pair["prediction"]) for pair in pairs]
    found = count_rouge(pairs, "13a")
    for name, values in found.items():
        assert values.tolist() == [100 * score[name].fmeasure for score in expected]
        assert 0 < values.mean() < 100
    ascii_pairs = make_pairs(4, 300, letters="abcd 12,.-_")
    own = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)  # with the package's own tokenizer
    expected = [own.score(pair["reference"], pair["prediction"])["rougeL"].fmeasure for pair in ascii_pairs]
    assert count_rouge(ascii_pairs, "13a")["rougeL"].tolist() == [100 * value for value in expected]


@pytest.mark.parametrize("tokenize", TOKENIZERS)
def test_bleu_counts_are_sacrebleus(tokenize):
    pairs = make_pairs(5, BATCH + 40)
    bleu = BLEU(tokenize=tokenize)
    scores = [bleu.corpus_score([pair["prediction"]], [[pair["reference"]]]) for pair in pairs]
    expected = [[score.sys_len, score.ref_len, *score.counts, *score.totals] for score in scores]
    assert count_bleu(pairs, tokenize)["matches"].tolist() == expected


def test_the_fast_chinese_tokenizer_is_sacrebleus():
    own, fast = TokenizerZh(), FastTokenizerZh()
    for text in [*make_texts(6, 2000, longest=12), *make_texts(7, 2000, longest=9, letters="1.,- 诸")]:
        assert fast(text) == own(text), text


def test_chrf_counts_are_sacrebleus():
    pairs = make_pairs(8, BATCH + 40) + make_pairs(9, 100, longest=8)
    chrf = CHRF()
    expected = chrf._extract_corpus_statistics(*([[p["prediction"] for p in pairs], [[p["reference"] for p in pairs]]]))
    assert count_chrf(pairs, "13a")["matches"].tolist() == expected


def test_bleu_and_chrf_of_summed_counts_equal_sacrebleus_to_the_last_bit():
    """Also without any match, with an order without a match, with answers that are too short, and with none."""
    rng = np.random.default_rng(0)
    totals = np.maximum(rng.integers(0, 60, (3000, 1)) - np.arange(4) * rng.integers(1, 4, (3000, 1)), 0)
    matched = np.minimum(totals, rng.integers(0, 30, (3000, 4)) * (rng.random((3000, 4)) < 0.7))
    lengths = np.stack([totals[:, 0], rng.integers(0, 60, 3000)], axis=1)
    sums = np.concatenate([lengths, matched, totals], axis=1)
    expected = [BLEU.compute_bleu(row[2:6], row[6:], *row[:2], smooth_method="exp").score for row in sums.tolist()]
    assert compute_bleu(sums.astype(float)).tolist() == expected
    assert 0 in expected
    assert ((matched == 0).any(axis=1) & (np.array(expected) > 0)).any()

    both = rng.integers(0, 9, (3000, 6)) * (rng.random((3000, 6)) < 0.6)
    sums = np.stack([both + rng.integers(0, 9, both.shape), both + rng.integers(0, 9, both.shape), both], axis=2)
    sums[::7, 3:, 0], sums[::5, 2:, 1], sums[::9] = 0, 0, 0
    sums[:, :, 2] = sums.min(axis=2)
    sums = sums.reshape(3000, 18)
    chrf = CHRF()
    assert compute_chrf(sums.astype(float), chrf.beta).tolist() == [chrf._compute_f_score(row) for row in sums.tolist()]


def share_distinct(texts, n):
    """Distinct n-grams divided by all n-grams."""
    grams = [tuple(tokens[at : at + n]) for tokens in texts for at in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams)


def test_distinct_shares_do_not_depend_on_the_size_of_the_test_set():
    records = make_records(400, seed=4)
    few, some, many = (score(records[:count], "shape") for count in (SAMPLE_SIZE, 100, 400))
    whole = share_distinct([split_tokens(record["prediction"]) for record in records], 2)
    assert few["distinct2"] == share_distinct([split_tokens(one["prediction"]) for one in records[:SAMPLE_SIZE]], 2)
    assert whole < many["distinct2"] / 3
    assert many["distinct2"] == pytest.approx(some["distinct2"], rel=0.1)
    other = [record | {"category": "other", "uid": f"o{record['uid']}"} for record in records[:100]]
    pooled = score([*records, *other], "shape")
    own = score(other, "shape")
    assert pooled["distinct2"] == pytest.approx((400 * many["distinct2"] + 100 * own["distinct2"]) / 500, rel=1e-12)


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
        assert corpus_chrf(weights, matches, chrf.beta)[0] == pytest.approx(expected, abs=1e-9)


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
    texts = [{"reference": reference, "prediction": text} for text in (prediction, reference)]
    found = count_rouge(texts, "13a")
    assert found["rouge1"].tolist() == found["rougeL"].tolist() == [pytest.approx(expected), pytest.approx(100)]
    assert split_tokens(reference) == reference.split()
    record = make_records(1)[0] | {"reference": "x", "prediction": reference}
    assert score([record], "shape")["length_ratio"] == len(reference.split())


def test_decomposed_text_equals_composed_text():
    text = "Café Ångström が 한국어 क़लम"
    decomposed = unicodedata.normalize("NFD", text)
    assert decomposed != text
    assert split_tokens(decomposed) == split_tokens(text)
    assert count_rouge([{"reference": text, "prediction": decomposed}], "13a")["rouge2"] == pytest.approx([100])
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
        shares = [share_distinct([answers[place] for place in places], n) for places in draw_samples(40)]
        assert len(shares) == SAMPLES
        assert found[f"distinct{n}"] == pytest.approx(sum(shares) / len(shares), rel=1e-12)
        assert found["intervals"][f"distinct{n}"] == [None, None]  # a record drawn twice would repeat its n-grams
    assert found["intervals"]["length_ratio"][0] < found["length_ratio"] < found["intervals"]["length_ratio"][1]


def test_undefined_shapes_are_null():
    record = make_records(1)[0] | {"reference": "", "prediction": ""}
    found = score([record], "shape")
    assert [found[name] for name in ("length_ratio", "repetition", "distinct1", "distinct2")] == [None] * 4
    values = build_shape(count_shape([record], "13a"))["distinct1"].function(np.ones((1, 1)))
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
