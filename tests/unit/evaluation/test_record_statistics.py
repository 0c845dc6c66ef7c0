"""Statistics files: they hold all that scores need, whole and without text, and other files are refused."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scored_records import score_records, write_statistics

import compare_models
import pool_scores
import score_predictions
from distill.common.errors import InputError
from distill.evaluation.metrics import GROUPS
from distill.evaluation.options import ScoringOptions
from distill.evaluation.record_statistics import count_statistics, pool, read_statistics
from distill.evaluation.scores import score

OPTIONS = ScoringOptions(list(GROUPS), "zh", 40, 3)
FLAGS = ["--metrics", *GROUPS, "--tokenize", "zh", "--answer-key", "key"]
WORDS = ["诸法", "因缘", "而生", "the", "bird", "sings", "3.5%", "rises"]


def make_records(category, count, seed=0):
    rng = np.random.default_rng([seed, count])

    def text():
        return " ".join(rng.choice(WORDS, rng.integers(0, 12)))

    return [
        {
            "category": category,
            "uid": f"{category}-{place:03d}",
            "reference": text(),
            "prediction": text(),
            "finish_reason": "stop",
            "usable": bool(rng.random() < 0.8),
            "label": float(rng.normal()),
            "parsed_value": float(rng.normal()),
            "nll": float(rng.uniform(1, 30)),
            "nll_tokens": int(rng.integers(5, 20)),
            "nll_hits": int(rng.integers(0, 5)),
        }
        for place in range(count)
    ]


def pool_files(folder, *paths):
    pool_scores.main(
        ["--statistics", *paths, *FLAGS, "--bootstrap", "40", "--seed", "3", "--out", f"{folder}/all.json"]
    )
    return json.loads((folder / "all.json").read_text())


def test_pooled_files_have_the_scores_of_all_records_together(tmp_path):
    records = {name: make_records(name, count) for name, count in (("b", 12), ("a", 9))}
    paths = [write_statistics(tmp_path, "kd", found, *FLAGS) for found in records.values()]
    together = score_records([*records["a"], *records["b"]], OPTIONS, "key")
    assert pool_files(tmp_path, *paths) == pool_files(tmp_path, *paths[::-1]) == together
    assert {"bleu", "chrf", "rougeL", "ppl", "mae", "distinct2", "fdistill_likelihood"} <= set(together["n"])


def test_a_file_keeps_everything_without_text_and_equal_files_have_equal_bytes(tmp_path):
    records = make_records("a", 9)
    path = write_statistics(tmp_path, "kd", records, *FLAGS)
    counted = count_statistics(records, OPTIONS, "key")
    read = read_statistics(path, OPTIONS, "key")
    assert read.equals(counted)
    assert not read.equals(count_statistics([records[0] | {"usable": False}, *records[1:]], OPTIONS, "key"))
    assert score(read, OPTIONS, "key") == score(counted, OPTIONS, "key")
    with np.load(path) as file:
        texts = [word for name in file.files for word in WORDS if word in str(file[name].tolist())]
    assert not texts
    again = write_statistics(tmp_path / "again", "kd", records, *FLAGS)
    assert Path(path).read_bytes() == Path(again).read_bytes()
    few = read_statistics(path, ScoringOptions(["bleu"], "zh", 0, 3), "")
    assert list(few.groups) == ["bleu"]


def test_columns_that_a_category_lacks_are_left_out_of_the_pooled_scores():
    measured = make_records("a", 5)
    other = [{name: value for name, value in one.items() if not name.startswith("nll")} for one in make_records("b", 5)]
    parts = [count_statistics(records, OPTIONS, "key") for records in (measured, other)]
    names = [set(score(part, OPTIONS, "key")["n"]) for part in (*parts, pool(parts))]
    assert names[0] - names[1] == {"ppl", "bits_per_byte", "agreement", "fdistill_likelihood"}
    assert names[2] == names[1]


def test_other_files_and_options_are_refused(tmp_path):
    path = write_statistics(tmp_path, "kd", make_records("a", 5), "--metrics", "bleu", "--tokenize", "zh")

    def read(path, *metrics, tokenize="zh"):
        return read_statistics(path, ScoringOptions(list(metrics), tokenize, 0, 3), "")

    with pytest.raises(InputError, match="expected the metrics bleu, rouge, found no rouge; run score_predictions.py"):
        read(path, "bleu", "rouge")
    with pytest.raises(InputError, match="expected the tokenizer 13a, found zh; run score_predictions.py again"):
        read(path, "bleu", tokenize="13a")
    with pytest.raises(InputError, match="expected each prompt once, found uid a-000 again"):
        pool_scores.main(["--statistics", path, path, "--metrics", "bleu", "--tokenize", "zh", "--out", "o"])
    torn, plain, array = (tmp_path / name for name in ("torn.npz", "plain.npz", "array.npy"))
    torn.write_bytes(Path(path).read_bytes()[:-90])
    plain.write_text("no arrays")
    np.save(array, np.ones(3))
    np.savez(tmp_path / "other.npz", tokenize="zh", groups=["bleu"], **{".uid": ["a"]})
    np.savez(tmp_path / "uneven.npz", tokenize="zh", groups=["bleu"], **{".uid": ["a"], ".category": ["a", "b"]})
    for wrong in (torn, plain, array, tmp_path / "other.npz", tmp_path / "uneven.npz"):
        with pytest.raises(InputError, match=f"{wrong.name}: expected a statistics file from score_predictions.py"):
            read(wrong, "bleu")


def test_a_single_category_is_not_pooled(tmp_path):
    paths = [write_statistics(tmp_path, model, make_records("a", 6), *FLAGS) for model in ("one", "two")]
    out = tmp_path / "comparisons.csv"
    compare_models.main(["--statistics", *paths, "--pairs", "one:two", *FLAGS, "--bootstrap", "9", "--out", str(out)])
    rows = out.read_text().splitlines()[1:]
    assert {row.split(",")[0] for row in rows} == {"a"}
    assert {row.split(",")[4] for row in rows} == {"0.0"}


# Kills this process as soon as the statistics have their bytes, but not their name.
KILL = """
import os, signal, sys
import numpy as np
import score_predictions

write = np.savez_compressed

def write_and_die(file, **arrays):
    write(file, **arrays)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

np.savez_compressed = write_and_die
score_predictions.main(sys.argv[1:])
"""


def test_kill_9_in_scoring_leaves_nothing_half_written_and_the_next_run_goes_on(tmp_path):
    path = tmp_path / "kd/a.predictions.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(record) + "\n" for record in make_records("a", 5)))
    argv = ["--predictions", str(path), *FLAGS, "--out", str(path.parent / "a.metrics.json")]
    argv += ["--statistics-out", str(path.parent / "a.statistics.npz")]
    scripts = os.path.dirname(score_predictions.__file__)
    killed = subprocess.run([sys.executable, "-c", KILL, *argv], cwd=scripts)
    assert killed.returncode == -signal.SIGKILL
    left = [one.name for one in path.parent.iterdir() if one != path]
    assert [name.startswith(".a.statistics.npz.") for name in left] == [True]
    score_predictions.main(argv)
    assert sorted(one.name for one in path.parent.iterdir()) == [
        "a.metrics.json", "a.predictions.jsonl", "a.statistics.npz"
    ]  # fmt: skip
    assert len(read_statistics(path.parent / "a.statistics.npz", OPTIONS, "key")) == 5
