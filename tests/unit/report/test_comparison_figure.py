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


@pytest.mark.parametrize(
    "largest", [2.3e-9, 4.7e-6, 0.00026, 0.00036, 0.0013, 0.0036, 0.019, 0.31, 7.4, 812, 56_000, 3.3e6]
)
def test_tick_labels_do_not_overlap(tmp_path, monkeypatch, largest):
    figures = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1]
    )
    rows = [
        Comparison("banks", "student_online", other, metric, 0, -0.94 * largest, largest, 0.5, 9)
        for metric in METRICS
        for other in ("student_online_base", "teacher")
    ]
    draw_comparisons(rows, tmp_path / "comparisons.png")
    overlaps, count = find_overlaps(figures[0])
    assert count >= 2 * len(METRICS)
    assert overlaps == []


def test_the_spread_over_seeds_is_a_bar_on_both_sides_of_the_difference(tmp_path, monkeypatch):
    figures = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1]
    )
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
