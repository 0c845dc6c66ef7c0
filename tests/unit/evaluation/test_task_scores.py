"""Scores of benchmark tasks against plain NumPy formulas over the drawn documents."""

import json
import math

import numpy as np
import pytest
from metrics_files import write_metrics

import average_tasks
import compare_models
import score_tasks
import tabulate_scores
from distill.common.errors import InputError
from distill.evaluation.bootstrap import draw_weights
from distill.evaluation.comparison_table import read_comparisons
from distill.evaluation.score_table import read_scores
from distill.evaluation.task_scores import read_task_scores
from distill.report.figures import draw_scores
from distill.report.score_text import format_text

RESAMPLES, SEED, COUNT = 120, 5, 25
OPTIONS = ["--bootstrap", str(RESAMPLES), "--seed", str(SEED)]


def draw_values(model, task, count=COUNT):
    rng = np.random.default_rng(sum(map(ord, model + task)))
    return (rng.random(count) < 0.6).astype(float)


def write_run(folder, model, digest="a", count=COUNT):
    """Files as run_tasks.py writes them: two tasks in a group, one of them with a filter, and a perplexity."""
    values = {"hard": draw_values(model, "hard", count), "easy": draw_values(model, "easy", count)}
    rows = [
        {"task": task, "filter": chosen, "document": f"{number}:{digest}", "values": {"acc": value}}
        for task in values
        for chosen in ("none", "strict")
        for number, value in enumerate(values[task] if chosen == "none" else values[task] * 0)
    ]
    rows += [{"task": "text", "filter": "none", "document": f"{n}:{digest}", "values": {}} for n in range(count)]
    own = {
        task: {"alias": task, "acc,none": one.mean(), "acc_stderr,none": "N/A", "acc,strict": 0.0}
        for task, one in values.items()
    }
    every = np.concatenate(list(values.values()))
    results = {
        "results": own
        | {"text": {"alias": "text", "word_perplexity,none": 12.5, "word_perplexity_stderr,none": "N/A"}},
        "groups": {"both": {"alias": "both", "acc,none": every.mean(), "acc_stderr,none": "N/A"}},
        "group_subtasks": {"both": ["hard", "easy"]},
        "n-samples": {name: {"original": 100, "effective": count} for name in (*own, "text")},
    }
    path = folder / model
    path.mkdir(parents=True, exist_ok=True)
    (path / "banks.documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "banks.lm_eval.json").write_text(json.dumps(results))
    return every


def score(folder, model, **options):
    """The values of the documents of the group, and the metrics file."""
    every = write_run(folder, model, **options)
    path = folder / model
    argv = ["--documents", path / "banks.documents.jsonl", "--results", path / "banks.lm_eval.json"]
    argv += ["--out", path / "banks.tasks.json", "--statistics-out", path / "banks.tasks.npz"]
    score_tasks.main([*map(str, argv), *OPTIONS])
    return every, json.loads((path / "banks.tasks.json").read_text())


def resample(values):
    weights = np.concatenate(list(draw_weights(len(values), RESAMPLES, SEED)))
    return np.array([np.repeat(values, row.astype(int)).mean() for row in weights])


def test_a_group_stands_for_its_tasks_with_an_interval_over_their_documents(tmp_path):
    every, content = score(tmp_path, "kd")
    assert list(content["n"]) == ["text/word_perplexity", "both/acc"]
    assert content["both/acc"] == every.mean()
    assert content["n"]["both/acc"] == 2 * COUNT
    assert content["intervals"]["both/acc"] == pytest.approx(np.quantile(resample(every), [0.025, 0.975]).tolist())
    assert (content["text/word_perplexity"], content["n"]["text/word_perplexity"]) == (12.5, COUNT)
    assert content["intervals"]["text/word_perplexity"] == [None, None]  # no mean over documents


def test_tasks_without_a_group_have_a_row_for_each_filter(tmp_path):
    write_run(tmp_path, "kd")
    path = tmp_path / "kd/banks.lm_eval.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps(results | {"groups": {}}))
    argv = ["--documents", tmp_path / "kd/banks.documents.jsonl", "--results", path, "--out", tmp_path / "kd/x.json"]
    score_tasks.main([*map(str, argv), *OPTIONS])
    content = json.loads((tmp_path / "kd/x.json").read_text())
    expected = ["hard/acc", "hard/acc/strict", "easy/acc", "easy/acc/strict", "text/word_perplexity"]
    assert list(content["n"]) == expected
    assert content["easy/acc"] == draw_values("kd", "easy").mean()
    assert (content["easy/acc/strict"], content["n"]["easy/acc/strict"]) == (0, COUNT)


def test_a_group_whose_score_is_no_mean_over_documents_has_no_interval(tmp_path):
    write_run(tmp_path, "kd")
    path = tmp_path / "kd/banks.lm_eval.json"
    results = json.loads(path.read_text())
    results["groups"]["both"]["acc,none"] += 0.01  # such as a mean over tasks of different sizes
    path.write_text(json.dumps(results))
    argv = ["--documents", tmp_path / "kd/banks.documents.jsonl", "--results", path, "--out", tmp_path / "kd/x.json"]
    score_tasks.main([*map(str, argv), *OPTIONS])
    content = json.loads((tmp_path / "kd/x.json").read_text())
    assert content["intervals"]["both/acc"] == [None, None]
    assert content["both/acc"] == results["groups"]["both"]["acc,none"]


def test_replicas_are_averaged_with_their_spread(tmp_path):
    values = [score(tmp_path, f"kd-seed{seed}")[0] for seed in (1, 2)]
    paths = [str(tmp_path / f"kd-seed{seed}/banks.tasks.npz") for seed in (1, 2)]
    out = tmp_path / "kd/banks.tasks.json"
    average_tasks.main(["--statistics", *paths, "--out", str(out), *OPTIONS])
    content = json.loads(out.read_text())
    means = [one.mean() for one in values]
    assert content["both/acc"] == pytest.approx(np.mean(means))
    assert content["seed_sd"]["both/acc"] == pytest.approx(np.std(means, ddof=1))
    interval = np.quantile(np.mean([resample(one) for one in values], axis=0), [0.025, 0.975])
    assert content["intervals"]["both/acc"] == pytest.approx(interval.tolist())
    assert (content["text/word_perplexity"], content["seeds"]) == (12.5, 2)


def test_models_are_compared_document_by_document(tmp_path):
    values = {model: score(tmp_path, model)[0] for model in ("kd", "kd_base")}
    statistics = write_statistics_of_test_split(tmp_path)
    out = tmp_path / "comparisons.csv"
    tasks = [str(tmp_path / f"{model}/banks.tasks.npz") for model in values]
    argv = ["--statistics", *statistics, "--tasks", *tasks, "--pairs", "kd:kd_base", "--metrics", "bleu"]
    compare_models.main([*argv, "--out", str(out), *OPTIONS])
    rows = {row.metric: row for row in read_comparisons(out)}
    assert rows.keys() == {"bleu", "both/acc"}
    difference = resample(values["kd"]) - resample(values["kd_base"])
    row = rows["both/acc"]
    assert row.difference == pytest.approx(values["kd"].mean() - values["kd_base"].mean())
    assert [row.ci_low, row.ci_high] == pytest.approx(np.quantile(difference, [0.025, 0.975]).tolist())
    assert row.n == 2 * COUNT


def write_statistics_of_test_split(folder):
    """Statistics of two models with the same answers on the test split."""
    from scored_records import write_statistics

    record = {"category": "banks", "uid": "1", "reference": "a b", "prediction": "a b", "finish_reason": "stop"}
    records = [record | {"usable": True, "label": None, "parsed_value": None}]
    return [write_statistics(folder, model, records, "--metrics", "bleu") for model in ("kd", "kd_base")]


def test_other_documents_are_refused(tmp_path):
    score(tmp_path, "kd-seed1")
    score(tmp_path, "kd-seed2", digest="b")
    paths = [str(tmp_path / f"kd-seed{seed}/banks.tasks.npz") for seed in (1, 2)]
    with pytest.raises(
        InputError, match="both/acc: expected the same documents for kd-seed1 and kd-seed2, found others"
    ):
        average_tasks.main(["--statistics", *paths, "--out", str(tmp_path / "kd/banks.tasks.json"), *OPTIONS])


def test_files_of_another_kind_are_refused(tmp_path):
    other = tmp_path / "other.json"
    other.write_text("{}\n")
    argv = ["--documents", other, "--results", other, "--out", tmp_path / "x.json"]
    with pytest.raises(InputError, match=r"other\.json: expected files from run_tasks\.py"):
        score_tasks.main([str(one) for one in argv])
    with pytest.raises(InputError, match=r"other\.json: expected a file from score_tasks\.py"):
        read_task_scores(other)


def test_scores_of_tasks_stand_behind_those_of_the_test_split(tmp_path):
    every, _ = score(tmp_path / "output/evaluation", "kd")
    metrics = write_metrics(tmp_path, "kd", "banks", bleu=(90.0, [80.0, 95.0], 20))
    out = tmp_path / "metrics.csv"
    tasks = tmp_path / "output/evaluation/kd/banks.tasks.json"
    tabulate_scores.main(["--metrics", str(tasks), str(metrics), "--out", str(out)])
    scores = read_scores(out)
    assert [one.metric for one in scores] == ["bleu", "text/word_perplexity", "both/acc"]
    assert math.isclose(scores[2].value, every.mean())
    heading, row = format_text(scores).splitlines()[1:]
    assert heading.split("  ")[-2:] == ["text word_perplexity", "both acc"]
    assert row.split() == ["kd", "20", "90.0", "12.500", f"{every.mean():.3f}"]
    alone = [one for one in scores if one.metric == "both/acc"]
    assert format_text(alone).splitlines()[2].split() == ["kd", str(2 * COUNT), f"{every.mean():.3f}"]
    assert "both acc" not in format_text(scores, width=20)
    draw_scores(scores, tmp_path / "scores.svg")
    assert "word_perplexity" in (tmp_path / "scores.svg").read_text()
