"""Perplexity's sums against a plain float64 computation, one record at a time."""

import pytest
import torch
from tiny import build_model

from distill.chat import encode_completion, encode_prompt
from distill.likelihood import reference_likelihoods


def test_sums_equal_a_record_by_record_computation(tokenizer, prompts):
    model = build_model(scale=3.0)
    tests = [
        prompt | {"reference": f"me {number} more" * (number + 1), "is_whole": number % 2 == 0}
        for number, prompt in enumerate(prompts)
    ]
    found = reference_likelihoods(model, tokenizer, tests, batch_size=3)
    for test, (nll, tokens) in zip(tests, found, strict=True):
        start = encode_prompt(tokenizer, test["system"], test["prompt"])
        end = encode_completion(tokenizer, test["reference"], test["is_whole"])
        with torch.no_grad():
            logits = model(torch.tensor([start + end])).logits[0].double()
        logp = logits.log_softmax(dim=-1)
        expected = -sum(logp[len(start) + i - 1, token].item() for i, token in enumerate(end))
        assert tokens == len(end)
        assert nll == pytest.approx(expected, rel=1e-5)
