"""Position embeddings that depend on the longest row: each row is computed as alone."""

import pytest
import torch
from tiny import build_tokenizer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    JambaConfig,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    OPTConfig,
    Phi3Config,
)

from distill.common.errors import InputError
from distill.generation.generate import decode_job
from distill.generation.rolling_batch import Job
from distill.generation.sampling import Sampling
from distill.generation.transformers_engine import ModelSource, TransformersEngine
from distill.models.completions import collate, decoder_and_head, read_hidden, take_rows
from distill.models.rope import check_lengths, find_rope_switch
from distill.student.fused_loss import score_completions
from distill.student.loss import Objective

SWITCH = 16
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": SWITCH,
}
SIZES = {"vocab_size": 320, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Phi3Config(
        **SIZES, max_position_embeddings=64, original_max_position_embeddings=SWITCH, rope_parameters=dict(LONGROPE)
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        weight.data *= 4  # attention that depends visibly on the positions
    return model


def draw_rows(*lengths):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 300, (length,), generator=generator).tolist() for length in lengths]


def test_the_switch_is_read_from_the_configuration(model):
    assert find_rope_switch(model.config) == SWITCH
    assert find_rope_switch(LlamaConfig(**SIZES)) is None


def test_transformers_computes_a_short_row_otherwise_beside_a_long_one(model):
    """If this fails, transformers chooses the frequencies by row, and `read_hidden` need not split batches."""
    decoder, _ = decoder_and_head(model)
    short, long = draw_rows(10, 30)
    batch = collate([short, long], [[5], [5]], 0)
    alone = read_hidden(decoder, torch.tensor([short]))[0]
    assert (read_hidden(decoder, batch["input_ids"])[0, :10] - alone).abs().max() > 0.1


@pytest.mark.parametrize("lengths", [(10, 30), (30, 10, 15, 25, 3), (10, 12), (30, 20), (15, 16), (2, 17)])
def test_hidden_states_are_those_of_each_row_alone(model, lengths):
    decoder, _ = decoder_and_head(model)
    rows = draw_rows(*lengths)
    batch = collate(rows, [[5]] * len(rows), 0)
    hidden = read_hidden(decoder, batch["input_ids"], batch["lengths"])
    assert hidden.shape[:2] == batch["input_ids"].shape
    for row, found in zip(rows, hidden, strict=True):
        alone = read_hidden(decoder, torch.tensor([[*row, 5]]))[0]
        torch.testing.assert_close(found[: len(alone)], alone, rtol=1e-5, atol=1e-5)


def test_the_loss_and_its_gradient_are_those_of_each_row_alone(model):
    rows, completions = draw_rows(10, 30, 4), draw_rows(5, 8, 7)
    objective = Objective()

    def measure(chosen):
        model.zero_grad()
        batch = collate([rows[row] for row in chosen], [completions[row] for row in chosen], 0)
        terms = score_completions(model, objective=objective, teacher=None, **batch)
        terms[0].backward()
        return terms[0].item(), model.model.layers[0].self_attn.qkv_proj.weight.grad.clone()

    together = measure([0, 1, 2])
    alone = [measure([row]) for row in range(3)]
    assert together[0] == pytest.approx(sum(loss for loss, _ in alone), rel=1e-5)
    torch.testing.assert_close(together[1], sum(gradient for _, gradient in alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [(4, 30, 12, 9), (3, 4), (20, 30)])
def test_answers_are_those_of_each_prompt_alone(model, lengths, caplog):
    prompts = draw_rows(*lengths)
    job = Job(prompts, [8] * len(prompts), [1], None, lambda logits, uniforms: logits.argmax(dim=-1))
    tokenizer = build_tokenizer()
    found = dict(pair for ended in decode_job(model, tokenizer, job, 4) for pair in ended)
    for index, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        own = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=1, pad_token_id=0)[0, len(prompt) :]
        assert found[index][: len(own)] == own.tolist()
    far = sum(length + 8 > SWITCH for length in lengths)
    text = f"{far} of {len(lengths)} answers may exceed {SWITCH} tokens"
    assert (text in caplog.text) == bool(far)


def test_a_likelihood_is_that_of_the_row_alone(model):
    decoder, head = decoder_and_head(model)
    rows, completions = draw_rows(5, 40), draw_rows(3, 2)
    batch = collate(rows, completions, 0)
    found = head(take_rows(read_hidden(decoder, batch["input_ids"], batch["lengths"]), batch["positions"]))
    own = [
        model(torch.tensor([row + completion])).logits[0, len(row) - 1 : -1]
        for row, completion in zip(rows, completions, strict=True)
    ]
    torch.testing.assert_close(found, torch.cat(own), rtol=1e-4, atol=1e-4)


def test_sequences_that_change_the_frequencies_of_others_are_refused():
    dynamic = LlamaConfig(
        **SIZES, max_position_embeddings=32, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    )
    check_lengths(dynamic, [3, 32], "the student")
    with pytest.raises(InputError, match=r"at most 32 tokens, the context of the student \(dynamic.*found one of 33"):
        check_lengths(dynamic, [3, 33], "the student")


@pytest.mark.parametrize(
    "config", [GPT2Config(n_positions=32), OPTConfig(max_position_embeddings=32), MptConfig(max_seq_len=32)]
)
def test_records_beyond_the_last_position_are_refused(config):
    """The embeddings would raise an IndexError, on a GPU in the middle of a kernel."""
    check_lengths(config, [3, 32], "the teacher")
    with pytest.raises(
        InputError, match=r"at most 32 tokens, the context of the teacher \(it has no further positions"
    ):
        check_lengths(config, [33], "the teacher")
    check_lengths(LlamaConfig(**SIZES, max_position_embeddings=32), [33], "the teacher")
    for other in (MambaConfig(), JambaConfig(max_position_embeddings=32)):
        check_lengths(other, [100_000], "the teacher")


def test_an_answer_beyond_the_last_position_is_not_scored(tmp_path):
    tokenizer = build_tokenizer()
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = TransformersEngine(ModelSource(str(tmp_path), dtype="float32", device="cpu"), Sampling(), 2)
    rows = draw_rows(30, 3)
    assert len(engine.score_completions(rows, [[5, 6], [5]])) == 2
    with pytest.raises(InputError, match="at most 32 tokens"):
        engine.score_completions(rows, [[5, 6, 7], [5]])


def test_batches_that_cannot_be_split_are_refused(model):
    check_lengths(model.config, [SWITCH + 1, SWITCH + 9], "the student", can_split=False)
    check_lengths(model.config, [1, SWITCH], "the student", can_split=False)
    check_lengths(model.config, [1, SWITCH + 1], "the student")
    with pytest.raises(InputError, match=f"max_length: expected at most {SWITCH} tokens with packing"):
        check_lengths(model.config, [1, SWITCH + 1], "the student", can_split=False)
