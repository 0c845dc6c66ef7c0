"""Metrics files for tests, as score_predictions.py writes them."""

import json


def write_metrics(folder, model, category, **figures):
    path = folder / "output" / "evaluation" / model / f"{category}.metrics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        **{name: value for name, (value, _, _) in figures.items()},
        "intervals": {name: interval for name, (_, interval, _) in figures.items()},
        "n": {name: n for name, (_, _, n) in figures.items()},
        "counts": {"records": 20},
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
