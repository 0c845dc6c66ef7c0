"""Fixtures of the library's tests: tiny models, options, records."""

import pytest
from tiny import build_tokenizer, save_model
from training_runs import change_run, make_run


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def models(tmp_path, tokenizer):
    """A teacher and a student with vocabularies padded to different sizes."""
    return {
        "teacher": save_model(tmp_path / "teacher", tokenizer, vocabulary=352, hidden=32, seed=1, scale=4.0),
        "student": save_model(tmp_path / "student", tokenizer, vocabulary=336, hidden=16, seed=2),
    }


@pytest.fixture
def options(tmp_path, models):
    """Options of a training, with changes."""

    def make(method="forward_kl", out="out", **changes):
        return change_run(make_run(tmp_path, models, method, out), **changes)

    return make


@pytest.fixture
def prompts():
    return [
        {
            "uid": f"{number:032x}",
            "system": "You are a manager.",
            "prompt": f"me={number}.5: estimate" + " more" * number,
        }
        for number in range(7)
    ]


@pytest.fixture
def records():
    def answer(number):
        return f'<think>me↑ {number}</think>\n<answer>\n{{"holding_log_delta": 0.{number}}}\n</answer>'

    return [
        {
            "id": number,
            "uid": f"{number:032x}",
            "origin": "sft",
            "label": number / 10,
            "finish_reason": "stop",
            "messages": [
                {"role": "system", "content": "You are a manager."},
                {"role": "user", "content": f"me={number}: estimate" + " the change" * (number % 3)},
                {"role": "assistant", "content": answer(number)},
            ],
        }
        for number in range(10)
    ]
