"""Packed rows: where each record is, and the loss and gradients of the records in rows of their own."""

import random

import pytest
import torch
from architectures import build
from divergence_formulas import FORMULAS
from tiny import build_model
from transformers import masking_utils, modeling_flash_attention_utils

from distill.common.errors import InputError
from distill.models.completions import collate, decoder_and_head, read_batch, take_rows
from distill.models.logits import read_transform
from distill.models.packing import pack
from distill.models.packing_check import check_packing
from distill.student.fused_loss import score_completions
from distill.student.loss import ExactTeacher, Objective

PROMPTS = [[5, 9, 30], [7, 8, 9, 10, 11, 12, 13], [3, 4], [20], [31, 32, 33, 34]]
COMPLETIONS = [[40, 41, 42, 43, 44], [50, 51], [60, 61, 62, 63, 64, 65, 66, 67, 68, 69], [70, 71], []]
ROW = 16
TAU, ALPHA = 2.0, 0.5


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([], []),
        ([4], [[0]]),
        ([3, 9, 6, 2, 7], [[1], [4, 0], [2, 3]]),
        ([5, 5, 5, 5], [[0, 1], [2, 3]]),
        ([12, 3, 10], [[0], [2], [1]]),  # longer than a row
    ],
)
def test_first_fit_decreasing(lengths, rows):
    assert pack(lengths, 10) == rows


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_filled_and_some_of_them_are_packed_alike(seed):
    source = random.Random(seed)
    lengths = [source.randrange(1, 40) for _ in range(30)]
    rows = pack(lengths, 40)
    assert sorted(index for row in rows for index in row) == list(range(30))
    totals = [sum(lengths[index] for index in row) for row in rows]
    assert max(totals) <= 40
    assert sum(total <= 20 for total in totals) <= 1  # any two of these would share a row
    some = [row for row in rows if source.random() < 0.5]
    members = [index for row in some for index in row]
    again = pack([lengths[index] for index in members], 40)
    assert [[members[index] for index in row] for row in again] == some


def test_packed_rows_and_where_their_records_are():
    batch = collate([[5, 6], [7], [1, 2, 3]], [[8], [9, 10], [4, 5]], pad_id=0, row_length=8)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 5, 6, 8], [7, 9, 10, 0, 0, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 0, 0, 0, 0, 0]]
    assert batch["boundaries"].tolist() == [0, 5, 8, 11, 12, 13, 14, 15, 16]
    assert batch["targets"].tolist() == [8, 9, 10, 4, 5]  # in the order of the records, not of the rows
    assert batch["positions"].tolist() == [6, 8, 9, 2, 3]


def test_the_detection_of_transformers_finds_the_same_sequences():
    batch = collate(PROMPTS, COMPLETIONS, 0, ROW)
    found = masking_utils.find_packed_sequence_indices(batch["position_ids"])
    assert len(found) < len(PROMPTS)
    assert ((batch["position_ids"] == 0).cumsum(-1) - 1).equal(found)


def sum_plain_loss(student, teacher):
    """The objective of all records in float64 from the models' own logits, record by record."""
    loss = torch.zeros((), dtype=torch.float64)
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        at = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
        ids = torch.tensor([prompt + completion])
        s = student(input_ids=ids, use_cache=False).logits[0, at]
        with torch.no_grad():
            t = teacher(input_ids=ids, use_cache=False).logits[0, at]
        for p, q, target in zip((t / TAU).softmax(-1), s, completion, strict=True):
            kd = FORMULAS["forward_kl"](p, (q / TAU).softmax(-1))
            loss = loss + ALPHA * TAU**2 * kd - (1 - ALPHA) * q.log_softmax(-1)[target]
    return loss


def sum_packed_loss(student, teacher, row_length):
    """The same by the library, in float64."""
    batch = collate(PROMPTS, COMPLETIONS, 0, row_length)
    decoder, head = decoder_and_head(teacher)
    with torch.no_grad():
        rows = take_rows(read_batch(decoder, batch), batch["positions"])
    signal = ExactTeacher(rows, head, read_transform(teacher.config))
    return score_completions(student, objective=Objective("forward_kl", TAU, ALPHA), teacher=signal, **batch)[0]


def find_gradients(model, loss):
    """The loss, and its gradients by the weights' names."""
    model.zero_grad()
    loss.backward()
    named = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {"loss": loss.detach()} | named


# Rotary, absolute and no position embeddings; sliding windows and chunks shorter than a record; experts; capped logits.
FAMILIES = {
    "llama": {},
    "qwen3": {},
    "gpt2": {},
    "gpt_neox": {},
    "mistral": {"sliding_window": 4},
    "gemma2": {"sliding_window": 4},
    "llama4_text": {"attention_chunk_size": 4},
    "mixtral": {"sliding_window": 4},
    "cohere": {},
}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_packed_losses_and_gradients_are_those_of_a_plain_formula(model_type, monkeypatch):
    # Some models compute norms or probabilities in float32 whatever their dtype; then the order of a sum shows.
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    student, teacher = (build(model_type, seed=seed, **FAMILIES[model_type]).double() for seed in (0, 1))
    for model in (student, teacher):
        model.config._experts_implementation = "eager"  # the products of all experts at once have no float64
    check_packing("student", student, ROW)
    wanted = find_gradients(student, sum_plain_loss(student, teacher))
    assert max(one.abs().max() for name, one in wanted.items() if name != "loss") > 1e-3
    for row_length in (None, ROW):
        found = find_gradients(student, sum_packed_loss(student, teacher, row_length))
        assert found.keys() == wanted.keys()
        for name, one in found.items():
            torch.testing.assert_close(one, wanted[name], rtol=1e-10, atol=1e-10, msg=f"{row_length}: {name}")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["mamba2", "falcon_h1", "xlstm", "recurrent_gemma", "jamba"])
def test_a_model_that_does_not_keep_records_apart_is_refused(name, attention):
    model = build(name)
    if attention == "sdpa" and not model._supports_sdpa:
        pytest.skip("no sdpa")
    model.set_attn_implementation(attention)
    with pytest.raises(InputError, match=r"differ by up to [\d.e-]+ \(the largest is .*; set train.packing to false$"):
        check_packing("models/x", model.train(), 32)
    assert model.training


@pytest.mark.parametrize("model_type", ["deepseek_v32", "glm_moe_dsa"])
def test_the_probe_has_rows_of_full_length(model_type):
    """Sparse attention to the 8 most relevant tokens shows with longer records only."""
    model = build(model_type, index_topk=8)
    check_packing("models/x", model, 16)
    with pytest.raises(InputError, match="keeps the records of a row apart"):
        check_packing("models/x", model, 32)


def test_a_model_that_cannot_take_position_ids_is_refused(monkeypatch):
    model = build_model()
    monkeypatch.setattr(model.model, "forward", lambda input_ids, use_cache: None)
    with pytest.raises(InputError, match="cannot read packed records"):
        check_packing("models/x", model, ROW)


def test_a_difference_of_16_bit_rounding_is_accepted():
    check_packing("models/x", build("llama").bfloat16(), ROW)


class FlashStandIn:
    """The functions of flash-attn that transformers calls, computed by torch; counts the calls of the second one."""

    def __init__(self):
        self.calls = 0

    @staticmethod
    def plain(query, key, value, causal=False, softmax_scale=None):
        """(batch, tokens, heads, width) each."""
        heads_first = (one.transpose(1, 2) for one in (query, key, value))
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(*heads_first, is_causal=causal, scale=softmax_scale, enable_gqa=True).transpose(1, 2)

    def variable(self, query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **settings):
        """(tokens, heads, width) each, sequence after sequence."""
        self.calls += 1
        assert cu_seqlens_q.dtype == torch.int32
        assert cu_seqlens_q.equal(cu_seqlens_k)
        sizes = cu_seqlens_q.diff().tolist()
        assert max(sizes) <= max_seqlen_q == max_seqlen_k
        parts = zip(*(one.split(sizes) for one in (query, key, value)), strict=True)
        return torch.cat([self.plain(*(one[None] for one in part), **settings)[0] for part in parts])


@pytest.fixture
def flash(monkeypatch):
    """flash-attn in transformers, by the stand-in: its kernels need a GPU."""
    stand_in = FlashStandIn()
    names = {"_loaded_implementation": "flash_attention_2", "_flash_fn": stand_in.plain}
    names |= {"_flash_varlen_fn": stand_in.variable, "_flash_with_kvcache_fn": None, "_pad_fn": None, "_unpad_fn": None}
    names |= {
        "_process_flash_kwargs_fn": modeling_flash_attention_utils._lazy_define_process_function(stand_in.variable)
    }
    for name, value in names.items():
        monkeypatch.setattr(modeling_flash_attention_utils, name, value, raising=False)
    return stand_in


def test_the_kernels_of_flash_attention_read_all_rows_as_one(flash):
    model, teacher = (build_model(hidden=32, seed=seed).eval() for seed in (0, 1))
    wanted = find_gradients(model, sum_packed_loss(model, teacher, ROW))
    for one in (model, teacher):
        one.config._attn_implementation = "flash_attention_2"
    check_packing("models/x", model, ROW)
    flash.calls = 0
    found = find_gradients(model, sum_packed_loss(model, teacher, ROW))
    assert flash.calls == 2 * model.config.num_hidden_layers  # of both models
    for name, one in found.items():
        torch.testing.assert_close(one, wanted[name], rtol=1e-4, atol=1e-5, msg=name)
