"""The page of near-duplicates: counts by category, and pairs with their differences marked, texts as data."""

import csv
import json

import pytest
from html_pages import HOSTILE, Page

import render_near_duplicates
from distill.common.errors import InputError
from distill.records.near_duplicate_options import COLUMNS
from distill.report.near_duplicates_page import MOST_PAIRS, compare_texts


def make_counts(category="banks", **changes):
    found = {"test": 1, "val": 0, "train": 1}
    fixed = {"category": category, "threshold": 0.8, "shingle_size": 3, "action": "report"}
    counted = {"prompts": {"train": 1200, "val": 90, "test": 100}, "near_duplicates": found, "uids": ["a1", "b2"]}
    return fixed | counted | {"dropped": 0, "incomplete": 0} | changes


def make_pair(uid, found_in="train", **changes):
    texts = {"text": f"What is {uid}?", "other_text": f"what is {uid}"}
    return {"uid": uid, "found_in": found_in, "other": f"other-{uid}", "similarity": "0.8500"} | texts | changes


PAIRS = [make_pair("a1", "test"), make_pair("b2")]


def render(folder, counts=None, pairs=None):
    """The page's text; counts and pairs by category."""
    counts, pairs = counts or {"banks": make_counts()}, pairs or {}
    for category, one in counts.items():
        (folder / f"{category}.json").write_text(json.dumps(one), encoding="utf-8")
        with open(folder / f"{category}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(pairs.get(category, PAIRS))
    files = [str(folder / f"{category}.{kind}") for kind in ("json", "csv") for category in counts]
    half = len(counts)
    render_near_duplicates.main(
        ["--counts", *files[:half], "--pairs", *files[half:], "--out", str(folder / "page.html")]
    )
    return (folder / "page.html").read_text(encoding="utf-8")


def test_counts_and_pairs_of_each_category(tmp_path):
    found = {"test": 0, "val": 0, "bench/mmlu.jsonl": 2, "train": 0}
    households = make_counts("households", near_duplicates=found, action="drop", dropped=2)
    pairs = [make_pair(uid, "bench/mmlu.jsonl", other=f"bench/mmlu.jsonl:{uid}") for uid in ("c3", "d4")]
    banks = make_counts(near_duplicates={"test": 1, "val": 0, "bench/mmlu.jsonl": 0, "train": 1})
    page = Page(render(tmp_path, {"banks": banks, "households": households}, {"households": pairs}))
    rows = [" ".join(text.split()) for text in page.get_texts("tr")]
    assert rows[1] == "test promptsvalidation promptsbench/mmlu.jsonlearlier training promptsany"
    assert rows[2:] == ["banks 1,200 10012 0", "households 1,200 00202 2"]
    assert page.get_texts("h2") == ["banks", "households"]
    headings = [" ".join(text.split()) for text in page.get_texts("h4")]
    assert headings == [
        *("training prompt a1", "test prompt other-a1", "training prompt b2", "earlier training prompt other-b2"),
        *("training prompt, dropped c3", "prompt of a further file bench/mmlu.jsonl:c3"),
        *("training prompt, dropped d4", "prompt of a further file bench/mmlu.jsonl:d4"),
    ]
    assert page.get_texts("uids") == ["a1 b2"]
    assert page.get_texts("mark") == ["W", "?", "w"] * 4


def test_differences_are_marked():
    first, second = compare_texts("什么是四圣谛？", "什么是八正道？")
    assert [(part.text, part.is_common) for part in first] == [("什么是", True), ("四圣谛", False), ("？", True)]
    assert [(part.text, part.is_common) for part in second] == [("什么是", True), ("八正道", False), ("？", True)]
    long = "x" * 5000
    assert compare_texts(long, "y") == ([(long, True)], [("y", True)])


def test_texts_are_data(tmp_path):
    pairs = [make_pair("a1", "test", text=HOSTILE, other_text=f"{HOSTILE} more", other=HOSTILE)]
    page = Page(render(tmp_path, pairs={"banks": pairs}))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "img" not in {tag for tag, _ in page.tags}
    assert page.get_texts("text")[0] == HOSTILE
    assert any(values.get("content", "").startswith("default-src 'none'") for _, values in page.tags)


def test_of_many_pairs_the_page_has_a_selection(tmp_path):
    many = [make_pair(f"{number:03}", similarity=f"{0.8 + number / 1000:.4f}") for number in range(150)]
    counts = make_counts(near_duplicates={"test": 0, "val": 0, "train": 150})
    page = Page(render(tmp_path, {"banks": counts}, {"banks": many}))
    shown = page.get_texts("h3")
    assert len(shown) == MOST_PAIRS
    assert (shown[0], shown[-1]) == ("0.95", "0.80")
    assert "50 of 150, evenly spaced by similarity; output/report/near_duplicates/banks.csv has all" in " ".join(
        page.get_texts("summary")
    )


def test_no_near_duplicates_and_incomplete_searches(tmp_path):
    counts = make_counts(near_duplicates={"test": 0, "val": 0, "train": 0}, uids=[], incomplete=7)
    page = Page(render(tmp_path, {"banks": counts}, {"banks": []}))
    assert page.get_texts("h2") == []
    assert "banks: 7 searches left out candidates" in page.get_texts("warning")[0]


def test_long_texts_are_read(tmp_path):
    page = Page(render(tmp_path, pairs={"banks": [make_pair("a1", "test", text="x" * 300_000)]}))
    assert page.get_texts("text")[0] == "x" * 300_000


def test_other_files_are_refused(tmp_path):
    render(tmp_path)
    arguments = ["--out", str(tmp_path / "page.html"), "--counts"]
    (tmp_path / "other.json").write_text('{"category": "banks"}')
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"other.json: expected counts of find_near_duplicates.py \(KeyError"):
        render_near_duplicates.main([*arguments, str(tmp_path / "other.json"), "--pairs", str(tmp_path / "banks.csv")])
    with pytest.raises(InputError, match="other.csv:1: columns: expected uid, found_in, .* found .*'a', 'b'"):
        render_near_duplicates.main([*arguments, str(tmp_path / "banks.json"), "--pairs", str(tmp_path / "other.csv")])
