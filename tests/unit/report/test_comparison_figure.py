"""The figure of comparisons: tick labels that can be read."""

import matplotlib.figure
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from distill.evaluation.comparison_table import Comparison
from distill.report.comparison_figure import draw_comparisons

METRICS = ("coverage", "mae", "ic", "ppl", "agreement", "bleu", "rougeL", "distinct1")


def find_overlaps(figure):
    """Pairs of neighbouring tick labels, of one panel or of two, whose boxes overlap; and how many labels there are."""
    FigureCanvasAgg(figure).draw()
    boxes = []
    for axes in figure.axes:
        left, right = sorted(axes.get_xlim())
        boxes += [
            (label.get_window_extent(), label.get_text())
            for place, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
            if label.get_visible() and label.get_text() and left <= place <= right
        ]
    boxes.sort(key=lambda one: one[0].x0)
    overlaps = [(a[1], b[1]) for a, b in zip(boxes, boxes[1:], strict=False) if a[0].x1 >= b[0].x0]
    return overlaps, len(boxes)


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved."""
    found = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: (found.append(self), save(self, *a, **k))[1]
    )
    return found


@pytest.mark.parametrize(
    "largest", [2.3e-9, 4.7e-6, 0.00026, 0.00036, 0.0013, 0.0036, 0.019, 0.31, 7.4, 812, 56_000, 3.3e6]
)
def test_tick_labels_do_not_overlap(tmp_path, figures, largest):
    rows = [
        Comparison("banks", "student_online", other, metric, 0, -0.94 * largest, largest, 0.5, 9)
        for metric in METRICS
        for other in ("student_online_base", "teacher")
    ]
    draw_comparisons(rows, tmp_path / "comparisons.png")
    overlaps, count = find_overlaps(figures[0])
    assert count >= 2 * len(METRICS)
    assert overlaps == []


def test_the_spread_over_seeds_is_a_bar_on_both_sides_of_the_difference(tmp_path, figures):
    rows = [
        Comparison("banks", "kd", "kd_base", "bleu", 5.0, 2.0, 9.0, 0.01, 20, 3, 1, 1.5),
        Comparison("banks", "kd", "teacher", "bleu", -4.0, -6.0, -1.0, 0.01, 20),
    ]
    draw_comparisons(rows, tmp_path / "comparisons.png")
    (panel,) = figures[0].axes
    bars = [list(line.get_xdata()) for line in panel.get_lines() if line.get_marker() == "None"]
    assert bars == [[0, 0], [3.5, 6.5], [2.0, 9.0], [-6.0, -1.0]]
    points = [line for line in panel.get_lines() if line.get_marker() == "o"]
    assert [point.get_clip_on() for point in points] == [False, False]  # a point on the edge is drawn whole


@pytest.mark.parametrize(("students", "rows"), [(3, [*"abcdefg"]), (10, [])])
def test_a_large_experiment_has_the_pooled_differences_first_or_alone(tmp_path, figures, students, rows):
    """The titles and tick labels of many rows are repeated, so that each row can be read alone."""
    categories = [*"abcdefg", "all"]
    pairs = [(f"s{one}", f"s{other}") for one in range(students) for other in range(one + 1, students)]
    pairs += [(f"s{one}", other) for one in range(students) for other in (f"s{one}_base", "teacher")]
    compared = [
        Comparison(category, *pair, metric, 0.1, -0.5, 0.8, 0.5, 9)
        for category in categories
        for pair in pairs
        for metric in ("bleu", "ppl")
    ]
    draw_comparisons(compared, tmp_path / "comparisons.png")
    (figure,) = figures
    panels = figure.axes
    assert [axes.get_ylabel() for axes in panels if axes.get_ylabel()] == ["all", *rows]
    assert {axes.get_title() for axes in panels} == {"BLEU", "perplexity"}
    assert all(axes.xaxis.get_tick_params()["labelbottom"] for axes in panels)
    assert (figure.get_supxlabel() != "") == (not rows)
