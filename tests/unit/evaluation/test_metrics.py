"""The registry of metrics: a made-up group shows up everywhere, and an undeclared metric is an error."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from metrics_files import write_metrics
from running import ROOT

import compare_models
import plot_comparisons
import plot_scores
import print_scores
import score_predictions
import tabulate_scores
from distill.common.errors import InputError
from distill.evaluation.bootstrap import Statistic
from distill.evaluation.comparison_table import read_comparisons
from distill.evaluation.metrics import (
    FILE_ORDER,
    GROUPS,
    Measure,
    Metric,
    MetricGroup,
    list_metrics,
    needs_judgements,
    needs_likelihoods,
    needs_verdicts,
    select_drawn,
    select_metrics,
    select_printed,
)
from distill.evaluation.score_table import Score, gather_scores, read_scores
from distill.report.score_text import format_text

MADE_UP = "vowels"


def count_vowels(records, tokenize):
    """Vowels and letters of each record; also a column per name in the first record's `extra`."""
    texts = [record["prediction"] for record in records]
    columns = {MADE_UP: [sum(letter in "aeiou" for letter in text) for text in texts], "letters": [*map(len, texts)]}
    columns |= dict.fromkeys(records[0].get("extra", []), [0] * len(records))
    return {name: np.array(values) for name, values in columns.items()}


def build_vowels(columns):
    """Share of vowels; also a statistic per additional column, which no metric declares."""
    share = columns[MADE_UP].sum() / columns["letters"].sum()
    names = columns.keys() - {"letters"}
    return {name: Statistic(lambda weights: share * weights.mean(axis=1), len(columns["letters"])) for name in names}


@pytest.fixture
def made_up(monkeypatch):
    metric = Metric(MADE_UP, "vowels %", "vowels (share)", None, is_percentage=True, limit=1)
    measure = Measure(count_vowels, build_vowels, lambda tokenize: f"v:{tokenize}")
    group = MetricGroup("Share of vowels in the answers.", (metric,), lambda: measure)
    monkeypatch.setitem(GROUPS, MADE_UP, group)


def write_predictions(folder, model, text, **changes):
    path = folder / model / "banks.predictions.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"category": "banks", "reference": "a bird", "prediction": text, "finish_reason": "stop"}
    record |= {"usable": True, "label": None, "parsed_value": None, **changes}
    path.write_text("".join(json.dumps(record | {"uid": f"u{number}"}) + "\n" for number in range(3)))
    return str(path)


def test_a_made_up_group_is_found_everywhere(tmp_path, made_up, capsys):
    paths = [write_predictions(tmp_path, *pair) for pair in (("teacher", "aeio"), ("small", "bare"))]
    metrics = [str(tmp_path / f"{model}/banks.metrics.json") for model in ("teacher", "small")]
    for predictions, out in zip(paths, metrics, strict=True):
        argv = ["--predictions", predictions, "--metrics", MADE_UP, "--bootstrap", "9", "--out", out]
        score_predictions.main([*argv, "--statistics-out", predictions.replace("predictions.jsonl", "statistics.npz")])
    scores = json.loads((tmp_path / "small/banks.metrics.json").read_text())
    assert scores[MADE_UP] == 0.5
    assert scores["settings"][f"{MADE_UP}_signature"] == "v:13a"

    table, figure = tmp_path / "metrics.csv", tmp_path / "scores.svg"
    tabulate_scores.main(["--metrics", *metrics, "--out", str(table)])
    assert [(score.model, score.metric, score.value) for score in read_scores(table)] == [
        ("teacher", MADE_UP, 1.0), ("small", MADE_UP, 0.5)
    ]  # fmt: skip
    capsys.readouterr()
    print_scores.main(["--scores", str(table)])
    assert re.search(r"model +n  vowels %\nteacher +3 +100.0\nsmall +3 +50.0\n", capsys.readouterr().out)
    print_scores.main(["--scores", str(table), "--markdown"])
    assert "| banks | small | 3 | 50.0 |" in capsys.readouterr().out
    plot_scores.main(["--scores", str(table), "--out", str(figure)])
    assert ">vowels (share)</text>" in figure.read_text()

    table, figure = tmp_path / "comparisons.csv", tmp_path / "comparisons.svg"
    statistics = [path.replace("predictions.jsonl", "statistics.npz") for path in paths]
    argv = ["--statistics", *statistics, "--pairs", "small:teacher", "--metrics", MADE_UP, "--out", str(table)]
    compare_models.main([*argv, "--bootstrap", "9"])
    assert [(row.category, row.metric, row.difference) for row in read_comparisons(table)] == [("banks", MADE_UP, -0.5)]
    plot_comparisons.main(["--comparisons", str(table), "--out", str(figure)])
    assert ">vowels (share)</text>" in figure.read_text()


def test_a_made_up_group_is_a_choice_of_the_command_lines(made_up, capsys):
    for script in (score_predictions, compare_models):
        with pytest.raises(SystemExit):
            script.main(["--help"])
        assert MADE_UP in capsys.readouterr().out


def test_an_undeclared_statistic_is_an_error(tmp_path, made_up):
    path = write_predictions(tmp_path, "small", "bare", extra=["consonants"])
    with pytest.raises(ValueError, match="metric group vowels: expected one of vowels, found consonants"):
        score_predictions.main(["--predictions", path, "--metrics", MADE_UP, "--out", str(tmp_path / "out.json")])
    assert not (tmp_path / "out.json").exists()


def test_an_undeclared_metric_in_a_file_is_an_error(tmp_path):
    """As in a file from another version: left out of the tables without a word, nobody would miss it."""
    path = write_metrics(tmp_path, "small", "banks", mae=(1.0, [0.5, 1.5], 9), vowels=(1.0, [0.5, 1.5], 9))
    with pytest.raises(InputError, match=rf"{path}: n: expected one of coverage, mae, .*, found vowels"):
        gather_scores([path])
    table = tmp_path / "metrics.csv"
    table.write_text(
        "model,category,metric,value,ci_low,ci_high,n,seeds,seed_sd\na,b,mae,1,,,3,1,\na,b,vowels,1,,,3,1,\n"
    )
    with pytest.raises(InputError, match=rf"{table}:3: metric: expected one of coverage, mae, .*, found 'vowels'"):
        read_scores(table)
    table = tmp_path / "comparisons.csv"
    columns = "category,model,other,metric,difference,ci_low,ci_high,p_value,n,seeds,other_seeds,seed_sd"
    table.write_text(f"{columns}\na,b,c,vowels,1,,,,3,1,1,\n")
    with pytest.raises(InputError, match=rf"{table}:2: metric: expected one of coverage, mae, .*, found 'vowels'"):
        read_comparisons(table)
    for select in (select_metrics, select_printed, select_drawn):
        with pytest.raises(InputError, match="metric vowels: expected one of coverage"):
            select(["mae", "vowels"])
    with pytest.raises(InputError, match="metric vowels: expected one of coverage"):
        format_text([Score("small", "banks", "vowels", 1.0, None, None, 3)])


def test_names_are_unique_and_refer_to_declared_metrics():
    names = [metric.name for group in GROUPS.values() for metric in group.metrics]
    assert len(set(names)) == len(names)
    assert set(FILE_ORDER) <= set(GROUPS)
    for metric in list_metrics().values():
        assert {metric.replaced_by, metric.same_as} <= {None, *names}
    assert all(group.description.endswith(".") for group in GROUPS.values())


def test_needs_of_groups():
    assert [name for name in GROUPS if needs_likelihoods([name])] == ["ppl", "fdistill"]
    assert [name for name in GROUPS if needs_judgements([name])] == ["fdistill"]
    assert needs_likelihoods(["bleu", "ppl"])
    assert not needs_judgements([])
    assert [name for name in GROUPS if needs_verdicts([name])] == ["pairwise"]


def test_the_report_explains_every_metric():
    caption = (ROOT / "workflow/report/table.rst").read_text()
    assert [name for name in list_metrics() if f"``{name}``" not in caption] == []


def test_the_registry_is_light():
    """Snakemake's own process imports it for the configuration, and so does every job that parses the Snakefile."""
    heavy = {"numpy", "pandas", "sacrebleu", "rapidfuzz", "matplotlib", "torch"}
    code = f"import sys, distill.evaluation.options; print(*{heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "workflow/scripts", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
