"""The score table: order of the rows, content of the cells, and the two printed forms."""

import re

import pytest
from metrics_files import write_metrics

import print_scores
import tabulate_scores
from distill.common.errors import InputError
from distill.evaluation.score_table import (
    Score,
    gather_scores,
    order_categories,
    order_models,
    read_scores,
    write_scores,
)
from distill.report.score_text import format_markdown, format_text

COLUMNS = "model,category,metric,value,ci_low,ci_high,n,seeds,seed_sd"


def make_scores(models=("teacher", "small", "small_base"), categories=("banks", "all"), value=0.5):
    metrics = {"coverage": value, "mae": 0.01234, "ppl": 1.5, "bleu": 90.0, "rouge1": 80.0, "rougeL": 91.25}
    return [
        Score(model, category, metric, figure, figure * 0.9, figure * 1.1, 18 if metric == "mae" else 20)
        for model in models
        for category in categories
        for metric, figure in metrics.items()
    ]


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (["b_base", "a", "teacher", "b", "a_base"], ["teacher", "b", "b_base", "a", "a_base"]),
        (["z", "z_base", "a", "a_base"], ["z", "z_base", "a", "a_base"]),
        (["data_base", "teacher"], ["teacher", "data_base"]),
        (["qwen_base_base", "qwen_base"], ["qwen_base", "qwen_base_base"]),
        (["a", "a", "teacher"], ["teacher", "a"]),
        (["a_nf4", "a_gguf", "b", "a_base", "a"], ["a", "a_base", "a_nf4", "a_gguf", "b"]),
        (["x_nf4", "a"], ["x_nf4", "a"]),
        (
            ["a-seed1_int8", "a_base", "a-seed2", "b", "a-seed1", "a", "b_base"],
            ["a", "a-seed2", "a-seed1", "a_base", "a-seed1_int8", "b", "b_base"],
        ),
        (["b", "a_base", "a-seed2", "a-seed1"], ["b", "a-seed2", "a-seed1", "a_base"]),
    ],
)
def test_order_of_models(models, expected):
    assert order_models(models) == expected


def test_pooled_category_comes_last():
    assert order_categories(["other", "all", "banks", "other"]) == ["other", "banks", "all"]


def test_script_writes_the_long_form(tmp_path):
    files = [
        write_metrics(tmp_path, "small_base", "all", mae=(None, [None, None], 0)),
        write_metrics(tmp_path, "small", "banks", coverage=(0.5, [0.25, 0.75], 20), mae=(0.1, [None, None], 1)),
        write_metrics(tmp_path, "teacher", "banks", coverage=(1.0, [1.0, 1.0], 20)),
    ]
    out = tmp_path / "report" / "metrics.csv"
    tabulate_scores.main(["--metrics", *map(str, files), "--out", str(out)])
    assert out.read_text(encoding="utf-8").splitlines() == [
        COLUMNS,
        "teacher,banks,coverage,1.0,1.0,1.0,20,1,",
        "small,banks,coverage,0.5,0.25,0.75,20,1,",
        "small,banks,mae,0.1,,,1,1,",
        "small_base,all,mae,,,,0,1,",
    ]
    assert read_scores(out) == gather_scores(files)


def test_names_with_separators_are_read_back(tmp_path):
    scores = [Score('a,"b"', "x\ny", "mae", 0.1, None, None, 3)]
    assert write_scores(tmp_path / "metrics.csv", scores) == 1
    assert read_scores(tmp_path / "metrics.csv") == scores


def test_two_files_for_one_model_and_category(tmp_path):
    first = write_metrics(tmp_path / "a", "small", "banks", mae=(1.0, [0.5, 1.5], 9))
    second = write_metrics(tmp_path / "b", "small", "banks", mae=(1.0, [0.5, 1.5], 9))
    with pytest.raises(
        InputError, match=re.escape(f"{second}: expected one file per model and category, found {first} before")
    ):
        gather_scores([first, second])


@pytest.mark.parametrize("content", ["{", "[]", '{"mae": 1, "n": {"mae": 2}}', '{"n": {"mae": 2}, "intervals": {}}'])
def test_a_file_that_is_not_a_metrics_file(tmp_path, content):
    path = write_metrics(tmp_path, "small", "banks")
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="expected a metrics file"):
        gather_scores([path])


def test_a_path_without_model_or_category(tmp_path):
    with pytest.raises(InputError, match=re.escape("MODEL/CATEGORY.metrics.json")):
        gather_scores([tmp_path / "banks.json"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,metric\n", ":1: expected the columns"),
        (f"{COLUMNS}\na,b,mae,x,,,3,1,\n", ":2: value: expected a number, found 'x'"),
        (f"{COLUMNS}\na,b,mae,1,,,,1,\n", ":2: n: expected a number"),
        (f"{COLUMNS}\na,b,mae\n", ":2: value: expected a number, found None"),
    ],
)
def test_a_bad_table_is_named_by_line(tmp_path, text, message):
    path = tmp_path / "metrics.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(message)):
        read_scores(path)


def test_printed_table_is_aligned_and_complete():
    blocks = format_text(make_scores()).split("\n\n")
    assert [block.split("\n")[0] for block in blocks] == ["banks", "all"]
    lines = blocks[0].split("\n")[1:]
    assert len({len(line) for line in lines}) == 1
    assert re.split(r"  +", lines[0]) == ["model", "n", "coverage %", "MAE", "n (MAE)", "PPL", "BLEU", "ROUGE-L"]
    assert re.split(r"  +", lines[1]) == [
        *("teacher", "20", "50.0 [45.0, 55.0]", "0.0123 [0.0111, 0.0136]", "18", "1.50", "90.0", "91.2")
    ]
    assert [line.split()[0] for line in lines[1:]] == ["teacher", "small", "small_base"]


def test_intervals_are_left_out_of_a_narrow_table():
    models = ["teacher", "s" * 40]
    assert max(map(len, format_text(make_scores(models)).splitlines())) <= 120
    assert "[" in format_text(make_scores(models), width=200)
    assert "[" not in format_text(make_scores(models), width=100)


def test_undefined_and_missing_scores_are_dashes():
    scores = [
        Score("teacher", "banks", "coverage", 1.0, None, None, 20),
        Score("teacher", "banks", "mae", None, None, None, 0),
        Score("small", "banks", "ppl", 2.5e12, None, None, 20),
    ]
    header, teacher, small = (re.split(r"  +", line) for line in format_text(scores).splitlines()[1:])
    assert header == ["model", "n", "coverage %", "MAE", "n (MAE)", "PPL"]
    assert teacher == ["teacher", "20", "100.0", "–", "0", "–"]
    assert small == ["small", "20", "–", "–", "–", "2.50e+12"]


def test_scores_without_an_answer_format():
    scores = [score for score in make_scores() if score.metric not in ("coverage", "mae")]
    for text in (format_text(scores), format_markdown(scores)):
        assert "coverage" not in text
        assert "MAE" not in text


def test_agreement_is_shown_without_coverage_only():
    text = {"ppl": 1.5, "agreement": 0.625, "length_ratio": 0.987, "repetition": 0.0125, "fdistill_coverage": 12.345}
    text |= {"distinct1": 0.1, "distinct2": 0.2, "chrf": 33.0, "bleu": 20.0, "rougeL": 25.0}
    scores = [Score("teacher", "qa", metric, value, None, None, 20) for metric, value in text.items()]
    _, header, row = (re.split(r"  +", line) for line in format_text(scores, width=200).splitlines())
    assert dict(zip(header, row, strict=True)) == {
        "model": "teacher", "n": "20", "PPL": "1.50", "agreement %": "62.5", "BLEU": "20.0", "chrF": "33.0",
        "ROUGE-L": "25.0", "PPL by teacher": "12.3", "length ratio": "0.99", "repetition %": "1.2",
        "distinct-1 %": "10.0", "distinct-2 %": "20.0",
    }  # fmt: skip
    narrow = format_text(scores, width=100).splitlines()[1]
    assert len(narrow) <= 100
    assert "length ratio" in narrow
    assert "distinct" not in narrow
    assert "distinct-1 %" in format_markdown(scores)
    contract = [*scores, Score("teacher", "qa", "coverage", 1.0, None, None, 20)]
    assert "agreement" not in format_text(contract) + format_markdown(contract)


def test_a_mean_over_seeds_has_its_spread_and_their_number():
    scores = [
        Score("kd", "banks", "coverage", 0.5, 0.4, 0.6, 20, 3, 0.0125),
        Score("kd", "banks", "bleu", 31.25, 30.0, 33.0, 20, 3, 1.5),
        Score("kd-seed7", "banks", "coverage", 0.5, 0.4, 0.6, 20),
        Score("one", "banks", "bleu", 31.25, 30.0, 33.0, 20, 1, None),
    ]
    _, _, *lines = format_text(scores).splitlines()
    rows = [re.split(r"  +", line) for line in lines]
    assert rows[0] == ["kd (3 seeds)", "20", "50.0 ± 1.2 [40.0, 60.0]", "31.2 ± 1.5"]
    assert rows[1:] == [["kd-seed7", "20", "50.0 [40.0, 60.0]", "–"], ["one", "20", "–", "31.2"]]
    assert "| banks | kd (3 seeds) | 20 | 50.0 ± 1.2 [40.0, 60.0] | 31.2 ± 1.5 |" in format_markdown(scores)


def test_markdown_is_one_table():
    lines = format_markdown(make_scores(models=["teacher", "a|b"])).splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert {len(row) for row in cells} == {9}
    assert cells[0][0].strip() == "category"
    assert set(cells[1]) == {" --- ", " ---: "}
    assert [row[1].strip() for row in cells[2:]] == ["teacher", r"a\|b"] * 2


def test_print_script(tmp_path, capsys):
    path = tmp_path / "metrics.csv"
    write_scores(path, make_scores())
    print_scores.main(["--scores", str(path)])
    assert capsys.readouterr().out == format_text(make_scores()) + "\n"
    print_scores.main(["--scores", str(path), "--markdown"])
    assert capsys.readouterr().out == format_markdown(make_scores()) + "\n"


def test_the_order_of_files_does_not_matter(tmp_path):
    files = [
        write_metrics(tmp_path, model, category, mae=(1.0, [0.5, 1.5], 9))
        for model in ("teacher", "small", "small_base")
        for category in ("banks", "all")
    ]
    by_category = [path for category in ("all", "banks") for path in files if path.name.startswith(category)]
    assert gather_scores(by_category) == gather_scores(files)
