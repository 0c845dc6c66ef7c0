"""Figures: their content, names as data, and the same bytes in a rerun."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib.figure
import numpy as np
import pytest

import plot_scores
import plot_training
import plot_values
from distill.common.errors import InputError
from distill.evaluation.score_table import Score, write_scores
from distill.report.figures import (
    Values,
    choose_limit,
    draw_scores,
    draw_training,
    draw_values,
    pick_curve,
    read_training_log,
    read_values,
)
from distill.report.panels import choose_colors, wrap_name

ODD = "_a$x^2$<b>&"
PAIRS = ((0.1, 0.2), (0.2, 0.3), (None, 0.1), (0.2, None))


def write_jsonl(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_log(folder, student="small", category="banks", kd=True, steps=(1, 10, 20)):
    lines = [
        {"step": step, "epoch": step / 20, "loss": 3 / step, "ce": 2 / step, "kd": 1 / step if kd else None}
        for step in steps
    ]
    lines += [{"step": 10, "epoch": 0.5, "val_loss": 1.5}]
    return write_jsonl(folder / student / category / "training_log.jsonl", lines)


def write_predictions(folder, model="small", category="banks", pairs=PAIRS):
    records = [
        {"usable": predicted is not None, "parsed_value": predicted, "label": label} for predicted, label in pairs
    ]
    return write_jsonl(folder / model / f"{category}.predictions.jsonl", records)


def make_scores(models=("teacher", "small", "small_base"), categories=("banks", "all"), ppl=1.5):
    figures = {"coverage": 0.9, "mae": 0.1, "ic": 0.5, "ppl": ppl, "bleu": 40.0, "rougeL": 50.0}
    return [
        Score(model, category, metric, value, value * 0.9, value * 1.1, 20)
        for model in models
        for category in categories
        for metric, value in figures.items()
    ]


def read_texts(path):
    """All texts of an SVG, as a browser shows them; fails for a file that is not XML."""
    return ["".join(node.itertext()) for node in ElementTree.parse(path).iter() if node.tag.endswith("}text")]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that the test saves, to inspect."""
    figures = []
    save = matplotlib.figure.Figure.savefig

    def keep(self, *args, **kwargs):
        figures.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return figures


def draw_all(folder, out, suffix="svg", names=("small", "small_base")):
    """Draw one figure of each kind with its script; returns the paths."""
    models = ["teacher", *names]
    logs = [write_log(folder, name) for name in names]
    predictions = [write_predictions(folder / "evaluation", model) for model in models]
    write_scores(folder / "metrics.csv", make_scores(models))
    paths = [out / f"{kind}.{suffix}" for kind in ("training", "scores", "values")]
    plot_training.main(["--logs", *map(str, logs), "--out", str(paths[0])])
    plot_scores.main(["--scores", str(folder / "metrics.csv"), "--out", str(paths[1])])
    plot_values.main(["--predictions", *map(str, predictions), "--answer-key", "delta", "--out", str(paths[2])])
    return paths


def test_scripts_draw_svg_with_real_text(tmp_path):
    training, scores, values = (read_texts(path) for path in draw_all(tmp_path, tmp_path / "report"))
    assert {"small", "small_base", "banks", "optimizer step", "training loss", "(nats per token)"} <= set(training)
    assert {"teacher", "small", "small_base", "banks", "all", "perplexity", "BLEU", "ROUGE-L F1"} <= set(scores)
    assert {"n 2, MAE 0.100", "1 of 4 unusable", "true delta", "predicted delta", "teacher"} <= set(values)
    assert not [path for path in (tmp_path / "report").iterdir() if path.suffix == ".tmp"]


def test_scripts_draw_png(tmp_path):
    for path in draw_all(tmp_path, tmp_path / "report", suffix="png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_rerun_gives_the_same_bytes(tmp_path):
    first = [path.read_bytes() for path in draw_all(tmp_path, tmp_path / "a")]
    second = [path.read_bytes() for path in draw_all(tmp_path, tmp_path / "b")]
    assert first == second
    assert all(b"dc:date" not in content for content in first)


def test_a_rerun_with_many_points_gives_the_same_bytes(tmp_path):
    x = np.linspace(-1, 1, 1500)
    for name in ("a.svg", "b.svg"):
        draw_values([Values("small", "banks", x, x**3, 0, 1500)], tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"<image" in (tmp_path / "a.svg").read_bytes()


def test_names_are_data_not_markup(tmp_path):
    """Names are neither math for matplotlib nor tags for the browser; a leading underscore does not hide a label."""
    for path in draw_all(tmp_path, tmp_path / "report", names=[ODD, f"{ODD}_base"]):
        texts = read_texts(path)
        assert ODD in texts, path.name
        assert f"{ODD}_base" in texts, path.name
        assert "<b>" not in path.read_text(encoding="utf-8")


def test_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"ends in \.svg or \.png"):
        draw_scores(make_scores(), tmp_path / "scores.jpeg")
    assert list(tmp_path.iterdir()) == []


# Training curves


def test_a_resumed_log_keeps_the_later_line_of_a_step(tmp_path):
    lines = [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 9.0}, {"step": 20, "val_loss": 5.0}]
    lines += [{"step": 20, "loss": 2.0}, {"step": 30, "loss": 3.0, "kd": None}]
    log = read_training_log(write_jsonl(tmp_path / "small" / "banks" / "training_log.jsonl", lines))
    assert (log.student, log.category) == ("small", "banks")
    assert pick_curve(log, "loss") == ([10, 20, 30], [1.0, 2.0, 3.0])
    assert pick_curve(log, "val_loss") == ([20], [5.0])
    assert pick_curve(log, "kd") == ([], [])


def test_seqkd_alone_has_no_panel_for_the_distillation_term(tmp_path, drawn):
    alone, both = tmp_path / "alone.svg", tmp_path / "both.svg"
    seqkd = read_training_log(write_log(tmp_path, "seqkd", kd=False))
    draw_training([seqkd], alone)
    draw_training([seqkd, read_training_log(write_log(tmp_path, "kd"))], both)
    assert "distillation term" not in read_texts(alone)
    assert "distillation term" in read_texts(both)
    panel = next(axes for axes in drawn[1].axes if axes.get_title().startswith("distillation term"))
    assert [list(line.get_ydata()) for line in panel.get_lines()] == [[], [1.0, 0.1, 0.05]]


def test_warnings_of_trainings_stand_below_the_curves(tmp_path, drawn):
    shared, own = "Student and teacher read 'a$b$' and '<think>\\n'. " + "More. " * 60, "The gradient is 0.001 times."
    logs = []
    for student, category in (("kd", "banks"), ("kd", "all"), ("other", "banks")):
        path = write_log(tmp_path, student, category)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines[0]["warnings"] = [shared] if student == "kd" else [own]
        logs.append(read_training_log(write_jsonl(path, lines)))
    draw_training([read_training_log(write_log(tmp_path, "silent"))], tmp_path / "silent.svg")
    draw_training(logs, tmp_path / "training.svg")
    texts = " ".join(read_texts(tmp_path / "training.svg"))
    assert texts.count(f"kd (banks), kd (all): {shared.strip()}") == 1
    assert texts.count(f"other (banks): {own}") == 1
    assert drawn[0].get_supxlabel() == ""
    lowest = min(axes.get_tightbbox().y0 for axes in drawn[1].axes)
    assert drawn[1]._supxlabel.get_window_extent().y1 < lowest  # below the panels
    assert drawn[1]._supxlabel.get_window_extent().x1 < drawn[1].bbox.x1


@pytest.mark.parametrize(
    ("lines", "message"),
    [([], "found an empty file"), ([{"loss": 1.0}], "training_log.jsonl:1: step: expected a whole number")],
)
def test_a_bad_log_is_refused(tmp_path, lines, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read_training_log(write_jsonl(tmp_path / "a" / "b" / "training_log.jsonl", lines))


def test_a_log_without_curves_is_refused(tmp_path):
    log = read_training_log(write_jsonl(tmp_path / "a" / "b" / "training_log.jsonl", [{"step": 1}]))
    with pytest.raises(InputError, match="no curve to draw"):
        draw_training([log], tmp_path / "training.svg")


# Scores


def test_points_and_intervals_are_at_the_scores(tmp_path, drawn):
    draw_scores(make_scores(categories=["banks"]), tmp_path / "scores.svg")
    panel = next(axes for axes in drawn[0].axes if axes.get_title() == "BLEU")
    bars = [
        line.get_xdata() for line in panel.get_lines() if line.get_marker() == "None" and len(line.get_xdata()) == 2
    ]
    assert [list(bar) for bar in bars if bar[0] != bar[1]] == [[36.0, 44.0]] * 3
    points = {line.get_ydata()[0]: line for line in panel.get_lines() if line.get_marker() == "o"}
    assert [points[place].get_xdata()[0] for place in (0, 1, 2)] == [40.0] * 3
    assert points[2].get_markerfacecolor() == "white"
    assert points[1].get_markerfacecolor() == points[2].get_color() == points[1].get_color()


def test_replicas_are_points_on_the_line_of_their_mean(tmp_path, drawn):
    scores = [
        Score("kd", "banks", "bleu", 40.0, 36.0, 45.0, 20, 2, 3.0),
        Score("kd-seed1", "banks", "bleu", 37.0, 34.0, 42.0, 20),
        Score("kd-seed2", "banks", "bleu", 43.0, 39.0, 47.0, 20),
        Score("kd_base", "banks", "bleu", 10.0, 8.0, 12.0, 20),
    ]
    draw_scores(scores, tmp_path / "scores.svg")
    (panel,) = drawn[0].axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["kd", "kd_base"]
    bars = [list(line.get_xdata()) for line in panel.get_lines() if line.get_marker() == "None"]
    assert bars == [[37.0, 43.0], [36.0, 45.0], [8.0, 12.0]]  # the spread over seeds, then the intervals
    points = [line for line in panel.get_lines() if line.get_marker() == "o"]
    small = {line.get_xdata()[0]: line.get_ydata()[0] for line in points if line.get_markersize() < 4}
    assert small.keys() == {37.0, 43.0}
    assert all(0 < place < 0.5 for place in small.values())
    assert len({line.get_color() for line in points}) == 1


def test_trainings_of_a_students_seeds_share_a_colour_and_a_name(tmp_path, drawn):
    logs = [read_training_log(write_log(tmp_path, name)) for name in ("kd-seed1", "kd-seed2", "other")]
    draw_training(logs, tmp_path / "training.svg")
    lines = next(axes for axes in drawn[0].axes if axes.get_title().startswith("training loss")).get_lines()
    first, second, other = (line.get_color() for line in lines)
    assert first == second != other
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["kd", "other"]


def test_undefined_scores_are_marked(tmp_path):
    scores = [Score("teacher", "banks", "mae", 0.1, None, None, 5), Score("small", "banks", "mae", None, None, None, 0)]
    draw_scores([*scores, Score("other", "banks", "ppl", 2.0, 1.0, 3.0, 5)], tmp_path / "scores.svg")
    texts = read_texts(tmp_path / "scores.svg")
    assert texts.count("undefined") == 1
    assert texts.count("none") == 3


def test_distant_perplexities_have_a_log_axis(tmp_path, drawn):
    near = make_scores(["teacher"]) + make_scores(["small"], ppl=20)
    far = make_scores(["teacher"]) + make_scores(["small"], ppl=20_000)
    for scores in (near, far):
        draw_scores(scores, tmp_path / "scores.svg")
    scales = [next(a for a in f.axes if a.get_title() == "perplexity").get_xscale() for f in drawn]
    assert scales == ["linear", "log"]
    assert "10000" in read_texts(tmp_path / "scores.svg")  # 10^4 would need markup


def test_many_metrics_are_split_into_blocks(tmp_path, drawn):
    names = ["ppl", "agreement", "bleu", "chrf", "rougeL", "length_ratio", "repetition", "distinct1", "distinct2"]
    names += ["fdistill_coverage", "fdistill_likelihood"]
    scores = [Score("teacher", category, name, 0.5, 0.4, 0.6, 20) for category in ("banks", "all") for name in names]
    draw_scores(scores, tmp_path / "scores.svg")
    panels = [axes for axes in drawn[0].axes if axes.axison]
    assert len(panels) == 2 * 10  # fdistill likelihood equals the perplexity
    assert drawn[0].get_size_inches()[0] < 10
    assert sum(axes.get_ylabel() == "all" for axes in panels) == 2
    (chrf,) = [axes for axes in panels if axes.get_title() == "chrF"]
    assert [axes.get_xlim() for axes in chrf.get_shared_x_axes().get_siblings(chrf)] == [(-4.0, 104.0)] * 2


def test_scores_without_a_known_metric(tmp_path):
    with pytest.raises(InputError, match="no metric to draw"):
        draw_scores([Score("teacher", "banks", "rouge1", 1.0, None, None, 5)], tmp_path / "scores.svg")


def test_a_base_has_the_colour_of_its_student():
    colors = choose_colors(["teacher", "a", "a_base", "b", "b_base"])
    assert colors["teacher"] == "black"
    assert colors["a"] == colors["a_base"] != colors["b"] == colors["b_base"]
    colors = choose_colors(["teacher", "a-seed1", "a-seed2", "a_base", "a-seed2_int8", "b"])
    assert len({colors[name] for name in ("a", "a-seed1", "a-seed2", "a_base", "a-seed2_int8")}) == 1
    assert colors["a"] != colors["b"]


# Predicted against true


def test_values_of_a_file(tmp_path):
    values = read_values(write_predictions(tmp_path))
    assert (values.model, values.category, values.unusable, values.records) == ("small", "banks", 1, 4)
    assert values.predicted.tolist() == [0.1, 0.2]
    assert values.true.tolist() == [0.2, 0.3]


def test_a_prediction_without_a_field_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "small" / "banks.predictions.jsonl", [{"usable": True, "label": 0.1}])
    with pytest.raises(InputError, match=re.escape(f"{path}:1: parsed_value: expected in a prediction")):
        read_values(path)


def test_outliers_are_drawn_on_the_edge_and_counted(tmp_path, drawn):
    true = np.linspace(-1, 1, 50)
    predicted = np.where(true == 1, 1e6, true)
    values = Values("small", "banks", predicted, true, 3, 53)
    draw_values([values], tmp_path / "values.svg")
    limit = choose_limit([values])
    assert 1 < limit < 1.4
    inside, edge = (points.get_offsets() for points in drawn[0].axes[0].collections)
    assert len(inside) == 49
    assert np.asarray(edge).tolist() == [[1.0, limit]]
    texts = read_texts(tmp_path / "values.svg")
    assert "3 of 53 unusable, 1 beyond" in texts


def test_models_without_any_value(tmp_path):
    """A model without usable answers or labels has an empty panel; without predictions for a category, it has none."""
    paths = [
        write_predictions(tmp_path, "teacher", "banks", pairs=[(None, 0.1)] * 3),
        write_predictions(tmp_path, "teacher", "other", pairs=[(0.1, None)] * 3),
        write_predictions(tmp_path, "small", "other"),
    ]
    draw_values([read_values(path) for path in paths], tmp_path / "values.svg")
    texts = read_texts(tmp_path / "values.svg")
    assert texts.count("n 0, MAE undefined") == 2
    assert {"3 of 3 unusable", "0 of 3 unusable", "1 of 4 unusable", "small", "other"} <= set(texts)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mutual_funds", "mutual_funds"),
        ("insurance_companies", "insurance_\ncompanies"),
        ("averylongnamewithoutseparators", "averylongnamewithoutseparators"),
        ("ends_with_a_separator_", "ends_with_\na_separator_"),
    ],
)
def test_long_names_break_after_separators(name, expected):
    assert wrap_name(name, 14) == expected


def test_figures_need_no_display_and_no_pyplot():
    code = "import sys, plot_training, plot_scores, plot_values as _; print('matplotlib.pyplot' in sys.modules)"
    scripts = plot_values.__file__.rsplit("/", 1)[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=scripts, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
