"""Near-duplicate prompts, from raw records up to the splits and the report."""

import csv
import json

import pytest
from running import CONFIG, Directory, merge, read_lines

from distill.common.files import write_jsonl
from distill.plan.status import parse_dry_run

RAW = "artifacts/distill_data/raw"
OUT = "output/report/near_duplicates"
BASE, KEPT = (f"{RAW}/banks_teacher_prompts_{kind}.jsonl" for kind in ("base", "kept"))
SPLITS = "artifacts/distill_data/processed/banks"
CHANGES = {
    "categories": ["banks"],
    "mix": {"grpo_fraction": 0, "sft_fraction": 1},
    "teacher": {"adapter": None},
    "near_duplicates": {"action": "drop", "against": ["bench/questions.jsonl"]},
}
TEXTS = (
    "A walk from harbour {0} to mill {1}",
    "Why does {1} sell {0} of its glass?",
    "烤面包需要{0}克面粉，{1}怎么办？",
)


def write_records(folder):
    """40 different questions, of which the first 20 come again with another case and white space."""
    texts = [TEXTS[number % 3].format(hex(number * 7919), chr(97 + number % 26) * 9) for number in range(40)]
    texts += [f"  {text.upper()}" for text in texts[:20]]
    (folder / "artifacts/sft").mkdir(parents=True)
    messages = [
        [{"role": "system", "content": "S"}, {"role": "user", "content": text}, {"role": "assistant", "content": "A"}]
        for text in texts
    ]
    write_jsonl(folder / "artifacts/sft/sft_train_banks.jsonl", [{"messages": one} for one in messages])
    (folder / "bench").mkdir()
    write_jsonl(folder / "bench/questions.jsonl", [{"question": text} for text in texts[30:40]])


@pytest.fixture(scope="module")
def directory(fresh, tmp_path_factory):
    """A run up to the splits and the page."""
    folder = tmp_path_factory.mktemp("near_duplicates") / "run"
    folder.mkdir()
    (folder / "models").symlink_to(fresh.path / "models")
    write_records(folder)
    directory = Directory(folder, merge(CONFIG, CHANGES))
    directory.run(f"{SPLITS}/train.jsonl", f"{OUT}.html")
    return directory


def list_jobs(directory, *targets):
    """Return the rules of a dry run."""
    jobs, _ = parse_dry_run(directory.run("--dry-run", *targets))
    return {job.rule for job in jobs}


def test_the_teacher_is_not_asked_near_duplicates(directory):
    prompts, kept = read_lines(directory / BASE), read_lines(directory / KEPT)
    counts = json.loads((directory / f"{OUT}/banks.json").read_text())
    with open(directory / f"{OUT}/banks.csv", encoding="utf-8", newline="") as file:
        pairs = list(csv.DictReader(file))
    assert len(prompts) == 60
    assert {pair["uid"] for pair in pairs} == set(counts["uids"])
    assert {one["uid"] for one in prompts} - {one["uid"] for one in kept} == set(counts["uids"])
    assert counts["dropped"] == len(counts["uids"]) > 0
    found = counts["near_duplicates"]
    assert all(found.values())  # in test, val, the further file and train
    answers = read_lines(directory / f"{RAW}/teacher_outputs_banks.jsonl")
    assert [one["uid"] for one in answers] == [one["uid"] for one in kept]
    log = (directory / "logs/find_near_duplicates/banks.log").read_text()
    assert f"{counts['dropped']} dropped" in log


def test_no_training_prompt_resembles_a_held_out_one(directory):
    def read_texts(split):
        return [
            "".join(one["messages"][1]["content"].lower().split())
            for one in read_lines(directory / f"{SPLITS}/{split}.jsonl")
        ]

    train, held_out = read_texts("train"), read_texts("test") + read_texts("val")
    assert len(train) == len(set(train))
    assert not set(train) & set(held_out)
    # Held-out prompts stay, those that resemble each other included.
    counts = json.loads((directory / f"{OUT}/banks.json").read_text())["prompts"]
    assert len(held_out) == counts["test"] + counts["val"]


def test_the_page_shows_what_was_dropped(directory):
    page = (directory / f"{OUT}.html").read_text(encoding="utf-8")
    for uid in json.loads((directory / f"{OUT}/banks.json").read_text())["uids"]:
        assert uid in page
    assert "bench/questions.jsonl:" in page


def test_the_report_has_the_page_with_its_caption(directory, tmp_path):
    copy, report = directory.copy(tmp_path / "copy"), tmp_path / "report.html"
    copy.run(f"{OUT}.html", "--report", report)
    text = report.read_text(encoding="utf-8")
    assert "near_duplicates.html" in text
    assert "System Message" not in text  # docutils writes it for a malformed caption
    assert "3-grams of characters have a Jaccard similarity of" in " ".join(text.split())
    assert "The prompts found were dropped" in " ".join(text.split())


def test_what_depends_on_the_filter_reruns(directory, tmp_path):
    copy = directory.copy(tmp_path / "copy")
    targets = (f"{SPLITS}/train.jsonl", f"{OUT}.html")
    assert list_jobs(copy, *targets) == set()
    later = {"find_near_duplicates", "generate_answers", "split_answers", "render_near_duplicates"}
    for change in ({"threshold": 0.9}, {"action": "report"}):
        copy.configure(merge(directory.config, {"near_duplicates": change}))
        assert list_jobs(copy, *targets) == later
    copy.configure(directory.config)
    write_jsonl(copy / "bench/questions.jsonl", [{"question": "Who painted the ceiling?"}])
    assert list_jobs(copy, *targets) == later
    copy.configure(directory.config | {"near_duplicates": None})
    assert list_jobs(copy, targets[0]) == later - {"find_near_duplicates", "render_near_duplicates"}


def test_a_report_reruns_nothing_else(directory, tmp_path):
    copy = directory.copy(tmp_path / "copy")
    copy.configure(directory.config | {"near_duplicates": None})
    copy.run(f"{SPLITS}/train.jsonl")
    copy.configure(directory.config | {"near_duplicates": {}})
    assert list_jobs(copy, f"{SPLITS}/train.jsonl") == set()
    assert list_jobs(copy, f"{OUT}.html") == {"find_near_duplicates", "render_near_duplicates"}


def test_a_missing_further_file_is_named(directory, tmp_path):
    copy = directory.copy(tmp_path / "copy")
    copy.configure(merge(directory.config, {"near_duplicates": {"against": ["bench/none.jsonl"]}}))
    output = copy.run("--dry-run", f"{OUT}.html", check=False)
    assert "near_duplicates.against[0]: expected a file, found 'bench/none.jsonl'" in output
    assert "Traceback" not in output
