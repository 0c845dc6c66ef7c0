"""The probe that answers in a batch are those of each prompt alone."""

import pytest
import torch
from architectures import PAGE, build, list_types, read_unbuilt
from tiny import build_model, build_tokenizer

from distill.generation import batch_probe
from distill.generation.batch_probe import TESTED, choose_decoding
from distill.generation.generate import decode_padded, decode_rolling
from distill.models.architectures import UNSUPPORTED

DECODERS = [decode_rolling, decode_padded]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(size=300)


def test_unprobed_architectures_are_in_the_sweep():
    assert set(TESTED) <= set(list_types()) - set(UNSUPPORTED) - read_unbuilt(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(params=[False, True], ids=["one process", "ranks"])
def ranks(request):
    """Each rank of an on-policy training has a whole copy of the weights."""
    if request.param:
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    if request.param:
        torch.distributed.destroy_process_group()


def test_an_architecture_that_ignores_padding_answers_one_by_one(tokenizer, caplog, ranks):
    model = build("rwkv")
    assert choose_decoding(model, tokenizer, [2], [decode_padded]) == (decode_padded, 1)
    assert choose_decoding(model, tokenizer, [2], [decode_padded]) == (decode_padded, 1)
    assert caplog.text.count("rwkv: answers depend on the other prompts of a batch") == 1  # probed once


@pytest.mark.parametrize("model_type", ["stablelm", "gpt_neox", "starcoder2"])
def test_an_architecture_that_heeds_padding_answers_in_batches(model_type, tokenizer):
    assert choose_decoding(build(model_type), tokenizer, [2], DECODERS) == (decode_rolling, None)


def test_a_broken_batch_is_found(tokenizer, monkeypatch):
    """A model whose batched logits are off by a tenth."""
    monkeypatch.setattr(batch_probe, "TESTED", ())
    model = build_model(vocabulary=320)
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, out: out * 1.1 if len(out) > 1 else out)
    assert choose_decoding(model, tokenizer, [2], DECODERS) == (decode_padded, 1)
    with torch.no_grad():
        assert choose_decoding(build_model(vocabulary=320), tokenizer, [2], DECODERS) == (decode_rolling, None)
