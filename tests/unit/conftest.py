"""Fixtures of the library's tests."""

import pytest
import torch
from tiny import build_tokenizer

# Models this small gain nothing from a second thread, and wait for it where the machine is busy.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


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
