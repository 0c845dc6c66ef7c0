"""Likelihoods against a plain float64 computation, one record at a time."""

import pytest
import torch
from conversations import PRICE, make_conversation
from tiny import TOOLS, build_tokenizer, save_model

from distill.evaluation.likelihood import answer_likelihoods
from distill.generation.sampling import Sampling
from distill.generation.transformers_engine import ModelSource, TransformersEngine
from distill.models.chat import ChatTemplate
from distill.models.completions import score_rows
from distill.records.raw_records import get_fields


def test_sums_equal_a_record_by_record_computation(tmp_path, tokenizer, prompts):
    source = ModelSource(save_model(tmp_path / "model", tokenizer, scale=3.0), dtype="float32", device="cpu")
    engine = TransformersEngine(source, Sampling(), batch_size=3)
    model = engine.model
    tests = [
        prompt | {"answer": f"me {number} more" * (number + 1), "is_whole": number % 2 == 0}
        for number, prompt in enumerate(prompts)
    ]
    found = answer_likelihoods(engine, tests)
    for test, (nll, tokens, hits) in zip(tests, found, strict=True):
        start = ChatTemplate(tokenizer).encode_prompt(test["system"], test["prompt"])
        end = ChatTemplate(tokenizer).encode_completion(test["answer"], test["is_whole"])
        with torch.no_grad():
            logits = model(torch.tensor([start + end])).logits[0].double()
        logp = logits.log_softmax(dim=-1)
        expected = -sum(logp[len(start) + i - 1, token].item() for i, token in enumerate(end))
        assert tokens == len(end)
        likeliest = logp[len(start) - 1 : -1].argmax(dim=-1).tolist()
        assert hits == sum(map(int.__eq__, likeliest, end))
        assert nll == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("is_teacher", [False, True])
def test_a_conversation_is_scored_as_a_whole_and_the_teacher_sees_its_own_text(tmp_path, is_teacher):
    tokenizer = build_tokenizer(template=TOOLS)
    source = ModelSource(save_model(tmp_path / "model", tokenizer, scale=3.0), dtype="float32", device="cpu")
    engine = TransformersEngine(source, Sampling(), batch_size=1)
    test = get_fields(make_conversation(teacher_prompt="Think.")) | {"answer": "me more", "is_whole": True}
    ((nll, _, _),) = answer_likelihoods(engine, [test], is_teacher)
    system, *others = make_conversation()["messages"][:-1]
    if is_teacher:
        system = system | {"content": f"Think.\n\n{system['content']}"}
    start = tokenizer.apply_chat_template(
        [system, *others], tools=[PRICE], add_generation_prompt=True, return_dict=False
    )
    end = ChatTemplate(tokenizer).encode_completion("me more")
    with torch.no_grad():
        logp = engine.model(torch.tensor([start + end])).logits[0].double().log_softmax(dim=-1)
    expected = -sum(logp[len(start) + i - 1, token].item() for i, token in enumerate(end))
    assert nll == pytest.approx(expected, rel=1e-5)


def test_the_likeliest_tokens_are_counted_across_chunks():
    torch.manual_seed(0)
    rows, head = torch.randn(9, 4), torch.nn.Linear(4, 7)
    likeliest = head(rows).argmax(dim=-1)
    is_hit = torch.arange(9) % 3 != 0
    targets = torch.where(is_hit, likeliest, (likeliest + 1) % 7)
    nll, hits = score_rows(rows, head, targets, chunk=2)
    assert hits.tolist() == is_hit.tolist()
    logp = head(rows).double().log_softmax(dim=-1)
    assert nll.tolist() == pytest.approx((-logp[torch.arange(9), targets]).tolist(), rel=1e-5)
