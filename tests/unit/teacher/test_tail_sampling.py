"""A sample of the teacher's tail: counts with the right expectation, drawn from the record's content alone."""

import pytest
import torch

from distill.teacher.signal_packing import pack_signal, unpack_signal
from distill.teacher.signal_size import SignalShape
from distill.teacher.signal_teacher import top_log_probabilities
from distill.teacher.tail_sampling import draw_places, sample_tail


def make_example(length, token=0):
    return {"prompt": [1, 2, token], "completion": list(range(length))}


def make_logits(rows=1, vocabulary=60):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0)) * 3


def test_numbers_depend_on_the_record_alone():
    first, second = make_example(5), make_example(7, token=9)
    both = draw_places([first, second], 2, 3)
    assert both.shape == (12, 2, 3)
    assert torch.equal(both, torch.cat([draw_places([first], 2, 3), draw_places([second], 2, 3)]))
    assert torch.equal(draw_places([second, first], 2, 3), torch.cat([both[5:], both[:5]]))
    assert ((both >= 0) & (both < 1)).all()
    # Different records, tokens and temperatures have different numbers.
    assert len(both[..., 0].unique()) == 24


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("samples", [1, 4, 32])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature, samples):
    """On a grid of 20,000 numbers u, each token's mean count is its probability times the samples, up to the grid."""
    kept = top_log_probabilities(make_logits(), 8, [temperature])["ids"].long()
    tail = make_logits().scatter(1, kept, -torch.inf) / temperature
    grid = (torch.arange(20_000, dtype=torch.float64)[:, None] + 0.5) / 20_000
    ids, entropy = sample_tail(tail.expand(20_000, -1), (grid + torch.arange(samples)) / samples)
    counts = torch.stack([row.bincount(minlength=60) for row in ids])
    expected = tail[0].double().softmax(0)
    torch.testing.assert_close(counts.double().mean(0) / samples, expected, rtol=0, atol=1e-4)
    assert (counts[:, kept[0]] == 0).all()
    assert ((counts - samples * expected).abs() < 1 + 1e-9).all()
    assert (ids.diff(dim=1) >= 0).all()
    assert entropy[0].item() == pytest.approx(-(expected * expected.log().nan_to_num(0, 0, 0)).sum().item(), rel=1e-3)


def test_an_empty_tail_has_a_sample_without_weight():
    places = draw_places([make_example(3)], 1, 4)
    found = top_log_probabilities(make_logits(3, 8), 8, [1.0], places)
    assert (found["log_tail"].float().exp() == 0).all()
    assert found["tail_ids"].min() >= 0
    assert found["tail_ids"].max() < 8
    assert torch.isfinite(found["tail_entropy"]).all()


def test_a_signal_with_a_sample_is_packed_without_loss():
    places = draw_places([make_example(20)], 2, 5)
    found = top_log_probabilities(make_logits(20), 8, [1.0, 2.0], places)
    shape = SignalShape("topk", None, 8, (1.0, 2.0), 60, 5)
    packed = pack_signal(found | {"completion": torch.arange(20, dtype=torch.int32)}, shape)
    assert sum(tensor.nbytes for tensor in packed.values()) == 20 * shape.bytes_per_token
    unpacked = unpack_signal(packed, shape)
    assert found.keys() == set(shape.names)
    for name, tensor in found.items():
        assert torch.equal(unpacked[name], tensor)
        assert unpacked[name].dtype == tensor.dtype


def test_the_most_likely_tokens_are_those_without_a_sample():
    places = draw_places([make_example(6)], 1, 4)
    plain, sampled = (top_log_probabilities(make_logits(6), 8, [2.0], at) for at in (None, places))
    for name in plain:
        assert torch.equal(sampled[name], plain[name])
