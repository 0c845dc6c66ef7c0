"""Scores of predictions for tests, and the statistics that compare_models.py and average_scores.py read."""

import json

import score_predictions
from distill.evaluation.record_statistics import count_statistics
from distill.evaluation.scores import score


def score_records(records, options, answer_key):
    """The content of a metrics file."""
    return score(count_statistics(records, options, answer_key), options, answer_key)


def write_statistics(folder, model, records, *options):
    """Write predictions of one category and the statistics beside them; return the path of the latter."""
    path = folder / model / f"{records[0]['category']}.predictions.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    out = str(path).replace(".predictions.jsonl", ".statistics.npz")
    argv = ["--predictions", str(path), "--out", str(path.with_suffix(".json")), "--statistics-out", out, *options]
    score_predictions.main([*argv, "--bootstrap", "0"])
    return out
