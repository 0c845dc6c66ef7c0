"""Near-duplicate texts: what is compared, and that the index finds what a comparison of all pairs finds."""

import math
import random
import sys
from itertools import combinations

import pytest
from scipy.stats import binom

from distill.common.errors import InputError
from distill.records import text_index
from distill.records.text_index import (
    RECALL,
    Sketcher,
    Text,
    choose_bands,
    find_least_estimate,
    get_shingles,
    measure_similarity,
    normalise,
)

CHINESE = "什么是四圣谛请逐条说明缘起性空意思举一个生活中例子心经里色即常被误解成慈与悲有不同八正道第项正见"
LETTERS = "etaoin shrdlu cmfwypvbgkq"


def make_text(rng, alphabet, length):
    return "".join(rng.choice(alphabet) for _ in range(length))


def edit(rng, text, alphabet, edits):
    """Return the text with characters replaced, inserted or removed."""
    found = list(text)
    for _ in range(edits):
        place = rng.randrange(len(found))
        found[place : place + rng.randrange(2)] = [rng.choice(alphabet)] * rng.randrange(2)
    return "".join(found) or "。"


def make_texts(alphabet, count, seed=1):
    """Texts of 8 to 150 characters, half of which are edited copies of earlier ones."""
    rng = random.Random(seed)
    texts = []
    for number in range(count):
        if number % 2:
            text = rng.choice(texts)
            texts.append(edit(rng, text, alphabet, rng.randrange(1, 2 + len(text) // 12)))
        else:
            texts.append(make_text(rng, alphabet, rng.choice([8, 15, 30, 60, 150])))
    return texts


def test_case_width_and_white_space_make_no_difference():
    assert normalise("什么是　ＧＰＵ ？\n") == normalise("什么是gpu?")
    assert normalise("d = -0.3") != normalise("d = 0.3")
    assert normalise("第1项") != normalise("第2项")


def test_shingles_are_n_grams_of_characters():
    assert get_shingles("四 圣谛是", 3) == {"四圣谛", "圣谛是"}
    assert get_shingles("四谛", 3) == {"四谛"}
    assert measure_similarity(get_shingles("abcde", 3), get_shingles("ABCD F", 3)) == 2 / 4


@pytest.mark.parametrize("threshold", [0.5, 0.65, 0.8, 0.9, 0.97, 0.995, 1.0])
def test_a_text_at_the_threshold_is_found_with_a_probability_above_999_in_1000(threshold):
    bands, length = choose_bands(threshold)
    values = bands * length
    assert values <= 256
    candidate = 1 - (1 - threshold**length) ** bands
    compared = binom.sf(math.ceil(find_least_estimate(threshold, values) * values) - 1, values, threshold)
    assert candidate >= RECALL
    assert candidate + compared - 1 > 0.999


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("alphabet", [CHINESE, LETTERS], ids=["chinese", "letters"])
def test_the_index_finds_what_comparing_all_pairs_finds(alphabet, threshold):
    texts = make_texts(alphabet, 1200)
    shingles = [get_shingles(text, 3) for text in texts]
    best: dict[int, float] = {}
    for first, second in combinations(range(len(texts)), 2):
        if (similarity := measure_similarity(shingles[first], shingles[second])) >= threshold:
            best[second] = max(similarity, best.get(second, 0))
    sketcher = Sketcher(threshold, 3)
    index, found = sketcher.make_index(), {}
    for number, text in enumerate(texts):
        sketch = sketcher.sketch(text)
        if match := index.find(Text(str(number), text), sketch):
            other, found[number] = match
            assert int(other.name) < number
            assert measure_similarity(shingles[number], shingles[int(other.name)]) == found[number]
        index.add(Text(str(number), text), sketch)
    assert len(best) > 50
    assert found.keys() <= best.keys()
    assert sum(found.get(number) == similarity for number, similarity in best.items()) >= 0.99 * len(best)
    assert index.incomplete == 0


def test_of_equally_similar_texts_the_first_is_found_and_none_of_its_own_group():
    sketcher = Sketcher(0.8, 3)
    index = sketcher.make_index()
    for name, group in (("a", "one"), ("b", "two"), ("c", "three")):
        index.add(Text(name, "what is the capital of Spain?", group), sketcher.sketch("what is the capital of Spain?"))

    def find(group):
        text = "What is the capital of spain?"
        other, similarity = index.find(Text("d", text, group), sketcher.sketch(text))
        return other.name, similarity

    assert find("four") == ("a", 1.0)
    assert find("one") == ("b", 1.0)
    assert find("") == ("a", 1.0)


def test_of_many_candidates_the_most_similar_are_compared_and_the_rest_is_told_of(monkeypatch):
    monkeypatch.setattr(text_index, "MOST_COMPARED", 5)
    sketcher = Sketcher(0.8, 3)
    index = sketcher.make_index()
    template = "Estimate the log change of the holding in {} for the next quarter"
    rng = random.Random(1)
    for number in range(100):
        text = template.format("".join(rng.sample("ABCDEFGHIJ", 6)))
        index.add(Text(str(number), text), sketcher.sketch(text))
    known = template.format("ABCDKL")
    index.add(Text("known", known), sketcher.sketch(known))
    near, far = (template.format(name) for name in ("ABCDKM", "123456"))
    other, similarity = index.find(Text("near", near), sketcher.sketch(near))
    assert other.name == "known"
    assert similarity > 0.8
    assert index.incomplete == 0
    assert index.find(Text("far", far), sketcher.sketch(far)) is None
    assert index.incomplete == 1


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(InputError, match="expected the package rensa, .* cannot be imported .*pip install rensa"):
        Sketcher(0.8, 3)
