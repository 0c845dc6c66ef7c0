"""Every causal architecture of transformers, as a tiny model: its results equal the plain model's, or it is refused."""

import pytest
import torch
from architectures import PAGE, UNPACKED, VOCABULARY, build, list_types, read_unbuilt, update_page
from divergence_formulas import FORMULAS
from tiny import build_tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig

from distill.common.errors import InputError
from distill.generation.generate import generate_requests, stop_ids
from distill.generation.sampling import Request, Sampling
from distill.models.architectures import UNGENERATED, UNSAVED, UNSUPPORTED
from distill.models.chat import ChatTemplate
from distill.models.completions import collate, decoder_and_head, read_hidden, take_rows
from distill.models.logits import read_transform
from distill.models.packing_check import check_packing
from distill.models.split_check import check_split
from distill.student.fused_loss import score_completions
from distill.student.loss import ExactTeacher, Objective

UNBUILT = read_unbuilt(PAGE.read_text(encoding="utf-8"))
PROMPTS, COMPLETIONS = [[5, 9, 30], [7, 8, 9, 10, 11, 12, 13]], [[40, 41, 42, 43, 44], [50, 51]]


@pytest.fixture(scope="module")
def chat():
    return ChatTemplate(build_tokenizer(size=300))


def build_or_skip(model_type):
    """A tiny model; the page of the documentation lists the types without one."""
    if model_type not in UNBUILT:
        return build(model_type)
    # transformers raises anything for sizes that do not fit together.
    with pytest.raises(Exception):  # noqa: B017, PT011
        build(model_type)
    pytest.skip("no tiny model")


def test_the_table_of_the_documentation_is_up_to_date():
    text = PAGE.read_text(encoding="utf-8")
    assert update_page(text, UNBUILT) == text, "run python tests/helpers/architectures.py"


def plain_loss(student, teacher, tau=2.0, alpha=0.5):
    """Loss of both completions from the models' own logits, one row at a time, in float64."""
    loss = torch.zeros((), dtype=torch.float64)
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        at = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
        ids = torch.tensor([prompt + completion])
        with torch.no_grad():
            s, t = (model(input_ids=ids, use_cache=False).logits[0, at].double() for model in (student, teacher))
        loss -= (1 - alpha) * s.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).sum()
        for p, q in zip((t / tau).softmax(-1), (s / tau).softmax(-1), strict=True):
            loss += alpha * tau**2 * FORMULAS["forward_kl"](p, q)
    return loss.item()


@pytest.mark.parametrize("model_type", list_types())
def test_losses_and_answers_equal_the_plain_models(model_type, chat):
    student = build_or_skip(model_type)
    if model_type in UNSUPPORTED:
        with pytest.raises(InputError, match="is not supported"):
            check_split("model", student)
        return
    check_split("model", student)
    teacher = build(model_type, seed=1)
    batch = collate(PROMPTS, COMPLETIONS, pad_id=0)
    decoder, head = decoder_and_head(teacher)
    with torch.no_grad():
        rows = take_rows(read_hidden(decoder, batch["input_ids"]), batch["positions"])
        signal = ExactTeacher(rows, head, read_transform(teacher.config))
        found = score_completions(student, objective=Objective("forward_kl", 2.0, 0.5), teacher=signal, **batch)[0]
    assert found.item() == pytest.approx(plain_loss(student, teacher), rel=1e-3)


@pytest.mark.parametrize("model_type", list_types())
def test_a_saved_model_is_one_that_transformers_loads(model_type):
    config = build_or_skip(model_type).config
    assert (type(config) not in AutoModelForCausalLM._model_mapping) == (model_type in UNSAVED)


@pytest.mark.parametrize("model_type", list_types())
def test_packed_records_are_kept_apart_or_refused(model_type):
    """Attention by torch where the model has it, as a student is loaded."""
    if model_type in UNSUPPORTED:
        pytest.skip("not supported")
    model = build_or_skip(model_type)
    if model._supports_sdpa:
        model.set_attn_implementation("sdpa")
    if model_type in UNPACKED.split():
        with pytest.raises(InputError, match="set train.packing to false"):
            check_packing("model", model, 32)
    else:
        check_packing("model", model, 32)


@pytest.mark.parametrize("model_type", list_types())
def test_batched_answers_equal_those_of_each_prompt_alone(model_type, chat):
    if model_type in UNSUPPORTED:
        pytest.skip("not supported")
    model = build_or_skip(model_type)
    requests = [Request(n, str(n), "You are a manager.", "me=12.5 " * n) for n in (1, 6)]
    sampling = Sampling(max_new_tokens=8, temperature=0.0)
    if model_type in UNGENERATED:
        with pytest.raises(InputError, match="generated with the model's cache differ from those of a forward pass"):
            list(generate_requests(model, chat, requests, sampling, 2))
        return
    found = {}
    for batch in generate_requests(model, chat, requests, sampling, 2):
        found |= {request.uid: generated for request, generated in batch}
    for request in requests:
        ids = torch.tensor([chat.encode_prompt(request.system, request.prompt)])
        padding = list(range(len(chat.tokenizer), VOCABULARY))  # ids that no answer has
        with torch.no_grad():
            stops = stop_ids(model.generation_config, chat.tokenizer)
            model.generation_config = GenerationConfig()  # some force a token at the maximum length
            plain = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, suppress_tokens=padding,
                eos_token_id=stops, pad_token_id=0,
            )[0, ids.shape[1] :]  # fmt: skip
        left_out = {*stops, chat.tokenizer.pad_token_id}
        expected = chat.tokenizer.decode([token for token in plain.tolist() if token not in left_out])
        if found[request.uid].finish_reason == "length":
            expected = expected.rstrip("\ufffd")  # a cut character
        assert (found[request.uid].text, found[request.uid].tokens) == (expected, len(plain))
