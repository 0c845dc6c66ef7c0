"""Generation: seeded by record, padding, stopping, memory."""

import numpy as np
import pytest
import torch
from tiny import build_model

from distill import generation
from distill.batches import in_batches
from distill.chat import encode_prompt
from distill.generation import RecordSampler, Sampling, generate_batch, generate_records, record_uniforms

SAMPLING = Sampling(max_new_tokens=12, temperature=1.0, seed=5)


@pytest.fixture(scope="module")
def model():
    return build_model(vocabulary=352, scale=8.0)


def answers_by_uid(model, tokenizer, prompts, sampling=SAMPLING, batch_size=3):
    batches = generate_records(model, tokenizer, prompts, sampling, batch_size)
    return {record["uid"]: generated for batch in batches for record, generated in batch}


def test_a_records_answer_does_not_depend_on_its_batch(model, tokenizer, prompts):
    together = answers_by_uid(model, tokenizer, prompts, batch_size=7)
    alone = answers_by_uid(model, tokenizer, prompts, batch_size=1)
    reversed_order = answers_by_uid(model, tokenizer, prompts[::-1], batch_size=3)
    assert together == alone == reversed_order
    assert len({generated.text for generated in together.values()}) > 3


def test_the_seed_changes_answers_and_temperature_0_does_not_draw(model, tokenizer, prompts):
    other = Sampling(max_new_tokens=12, temperature=1.0, seed=6)
    assert answers_by_uid(model, tokenizer, prompts) != answers_by_uid(model, tokenizer, prompts, other)
    greedy = [Sampling(max_new_tokens=12, temperature=0.0, seed=seed) for seed in (1, 2)]
    assert answers_by_uid(model, tokenizer, prompts, greedy[0]) == answers_by_uid(model, tokenizer, prompts, greedy[1])


def test_greedy_equals_a_plain_loop_without_cache_or_padding(model, tokenizer, prompts):
    found = answers_by_uid(model, tokenizer, prompts, Sampling(max_new_tokens=8, temperature=0.0), batch_size=7)
    stops = generation.stop_ids(model, tokenizer)
    for record in prompts:
        ids = encode_prompt(tokenizer, record["system"], record["prompt"])
        start = len(ids)
        while len(ids) < start + 8 and (len(ids) == start or ids[-1] not in stops):
            with torch.no_grad():
                ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
        assert found[record["uid"]].text == tokenizer.decode(ids[start:], skip_special_tokens=True)
        assert found[record["uid"]].tokens == len(ids) - start


def test_the_models_own_generation_settings_do_not_count(tokenizer, prompts):
    plain, penalised = build_model(scale=8.0), build_model(scale=8.0)
    penalised.generation_config.repetition_penalty = 5.0
    penalised.generation_config.top_k = 1
    assert answers_by_uid(plain, tokenizer, prompts) == answers_by_uid(penalised, tokenizer, prompts)
    assert penalised.generation_config.repetition_penalty == 5.0


def draw(logits, sampling, count=4000):
    """Draw one token `count` times, each from another record's stream."""
    sampler = RecordSampler([str(number) for number in range(count)], 0, sampling)
    scores = torch.tensor(logits).expand(count, -1)
    return sampler(torch.zeros(count, 0, dtype=torch.long), scores).argmax(dim=1)


def test_tokens_are_drawn_with_their_probabilities():
    logits = [0.0, 1.0, 2.0, -1.0]
    drawn = draw(logits, Sampling(max_new_tokens=1, temperature=0.5, seed=1))
    found = np.bincount(drawn, minlength=4) / len(drawn)
    expected = np.exp(np.array(logits) / 0.5) / np.exp(np.array(logits) / 0.5).sum()
    # Four standard deviations of a share over 4,000 draws.
    assert (np.abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / len(drawn)) + 1e-9).all()


def test_top_k_and_top_p_leave_the_rest_out():
    logits = [3.0, 2.0, 1.0, 0.0]
    assert set(draw(logits, Sampling(1, 1.0, 1.0, 2)).tolist()) == {0, 1}
    assert set(draw(logits, Sampling(1, 1.0, 0.7)).tolist()) == {0, 1}


def test_streams_belong_to_record_and_seed():
    assert (record_uniforms("a", 1, 5) == record_uniforms("a", 1, 9)[:5]).all()
    assert (record_uniforms("a", 1, 5) != record_uniforms("b", 1, 5)).all()
    assert (record_uniforms("a", 1, 5) != record_uniforms("a", 2, 5)).all()


def test_an_answer_ends_at_the_end_of_turn_and_says_so(tokenizer):
    end, word = tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer("me")["input_ids"]
    stopped = generation.finish(tokenizer, [*word, end, *word], [end])
    assert (stopped.text, stopped.finish_reason, stopped.tokens) == ("me", "stop", len(word) + 1)
    cut = generation.finish(tokenizer, word, [end])
    assert (cut.text, cut.finish_reason, cut.tokens) == ("me", "length", len(word))


def test_out_of_memory_halves_the_batch_and_loses_nothing():
    sizes = []

    def work(rows):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError
        return list(rows)

    assert [row for batch in in_batches(list(range(9)), work, 8) for row in batch] == list(range(9))
    assert sizes[:3] == [8, 4, 2]

    def hopeless(rows):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        list(in_batches([1, 2], hopeless, 2))


def test_one_batch_keeps_its_order(model, tokenizer, prompts):
    encoded = [encode_prompt(tokenizer, record["system"], record["prompt"]) for record in prompts]
    keys = [record["uid"] for record in prompts]
    batch = generate_batch(model, tokenizer, encoded, keys, SAMPLING)
    assert batch == [answers_by_uid(model, tokenizer, prompts)[key] for key in keys]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_beyond_the_tokenizer_are_never_answered(tokenizer, prompts, temperature):
    padded = build_model(vocabulary=len(tokenizer) + 40)
    with torch.no_grad():  # the padding of the vocabulary is by far the likeliest
        hidden = padded.model(torch.tensor([[5]])).last_hidden_state[0, 0]
        padded.get_output_embeddings().weight[len(tokenizer) :] = 10 * hidden
    rows = []
    generate = padded.generate

    def record(**inputs):
        output = generate(**inputs)
        rows.append(output)
        return output

    padded.generate = record
    answers_by_uid(padded, tokenizer, prompts, Sampling(max_new_tokens=12, temperature=temperature, seed=3))
    assert max(row.max().item() for row in rows) < len(tokenizer)


def test_logits_that_are_not_finite_stop_the_run():
    with pytest.raises(FloatingPointError, match="not finite"):
        draw([0.0, float("nan")], Sampling(1, 1.0), count=2)
