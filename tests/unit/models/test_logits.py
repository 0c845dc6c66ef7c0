"""What happens to logits after the head: read from the configuration, and used in sampling, scores and signals."""

import pytest
import torch
from architectures import build
from tiny import build_model, build_tokenizer

from distill.common.errors import InputError
from distill.generation.generate import generate_requests
from distill.generation.sampling import Request, Sampling
from distill.models.chat import ChatTemplate
from distill.models.completions import decoder_and_head, read_hidden, score_rows
from distill.models.logits import LogitTransform, read_transform
from distill.models.split_check import check_split

# Model types with a scale or a cap, and settings that make it differ from one.
CHANGED = {
    "cohere": ({"logit_scale": 0.25}, LogitTransform(0.25)),
    "granite": ({"logits_scaling": 8.0}, LogitTransform(0.125)),
    "minicpm3": ({"dim_model_base": 4}, LogitTransform(0.125)),
    "hyperclovax": ({"logits_scaling": 0.25}, LogitTransform(0.25)),
    "falcon_h1": ({"lm_head_multiplier": 0.0195}, LogitTransform(0.0195)),
    "gemma2": ({"final_logit_softcapping": 30.0}, LogitTransform(1.0, 30.0)),
    "gemma3_text": ({"final_logit_softcapping": 30.0}, LogitTransform(1.0, 30.0)),
    "gemma4_text": ({"final_logit_softcapping": 30.0}, LogitTransform(1.0, 30.0)),
    "recurrent_gemma": ({"logits_soft_cap": 30.0}, LogitTransform(1.0, 30.0)),
    "nanochat": ({"final_logit_softcapping": 15.0}, LogitTransform(1.0, 15.0)),
    "xlstm": ({"output_logit_soft_cap": 30.0}, LogitTransform(1.0, 30.0)),
}


@pytest.fixture(scope="module")
def chat():
    return ChatTemplate(build_tokenizer(size=300))


def build_changed(model_type):
    """A tiny model with logits large enough for its cap."""
    settings, expected = CHANGED[model_type]
    model = build(model_type, **settings)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30 / expected.scale)
    return model, expected


@pytest.mark.parametrize("model_type", CHANGED)
def test_scores_are_those_of_the_models_own_logits(model_type):
    model, expected = build_changed(model_type)
    assert read_transform(model.config) == expected
    check_split("model", model)
    ids = torch.arange(10, 30)[None]
    decoder, head = decoder_and_head(model)
    with torch.no_grad():
        own = model(ids, use_cache=False).logits[0, :-1].double()
        rows = read_hidden(decoder, ids)[0, :-1]
    wanted = -own.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    found, _ = score_rows(rows, head, ids[0, 1:], read_transform(model.config))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)
    plain, _ = score_rows(rows, head, ids[0, 1:])
    assert (plain.double() - wanted).abs().max() > 0.1  # without the transform they would be wrong


@pytest.mark.parametrize("model_type", ["cohere", "gemma2"])
def test_answers_are_sampled_from_the_models_own_logits(model_type, chat, monkeypatch):
    model, _ = build_changed(model_type)
    seen = []

    def keep(self, logits, uniforms):
        seen.append(logits)
        return logits.argmax(-1)

    monkeypatch.setattr("distill.generation.generate.Draw.__call__", keep)
    request = Request(0, "0", "You are a manager.", "me=12.5")
    (answered,) = [
        one for part in generate_requests(model, chat, [request], Sampling(max_new_tokens=1)) for one in part
    ]
    ids = torch.tensor([chat.encode_prompt(request.system, request.prompt)])
    assert answered[1].prompt_tokens == ids.shape[1]
    with torch.no_grad():
        torch.testing.assert_close(seen[0][0], model(ids).logits[0, -1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["final_logit_softcapping", "logit_scale", "logits_scaling"])
def test_a_key_that_the_model_does_not_use_is_refused(name):
    model = build_model()
    setattr(model.config, name, 30.0)
    with pytest.raises(InputError, match="its logits differ by up to"):
        check_split("model", model)


def test_a_change_that_no_key_tells_is_refused(monkeypatch):
    model = build_model()
    forward = type(model).forward

    def doubled(self, *args, **inputs):
        outputs = forward(self, *args, **inputs)
        outputs.logits = outputs.logits * 2
        return outputs

    monkeypatch.setattr(type(model), "forward", doubled)
    with pytest.raises(InputError, match="changes hidden states or logits in a way that training would miss"):
        check_split("model", model)


def test_a_model_that_sees_later_tokens_is_refused():
    model = build_model()
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(InputError, match="with other tokens behind them, hidden states differ"):
        check_split("model", model)


def test_mpt_ignores_its_scale():
    for scale in (0.5, "inv_sqrt_d_model"):
        check_split("mpt", build("mpt", logit_scale=scale))
