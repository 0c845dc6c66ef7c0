"""Live memory: storages are counted once, from their allocation to their release."""

import pytest
import torch

from distill.memory_plan.caching_allocator import CachingAllocator
from distill.memory_plan.live_memory import LiveMemory

KIB = 1024


def zeros(kibibytes):
    return torch.zeros(kibibytes * 256)  # float32


def test_the_peak_of_a_known_sequence_by_phase():
    live = LiveMemory("cpu")
    with live:
        live.phase = "first"
        one = zeros(3)
        two = zeros(5)
        del one
        live.phase = "second"
        three = zeros(1)
        assert live.now == 6 * KIB
    assert live.peaks == {"first": 8 * KIB, "second": 6 * KIB}
    assert live.where == {"first": "aten.zeros", "second": "aten.zeros"}
    assert live.events == [(0, 3 * KIB), (1, 5 * KIB), (0, 0), (3, KIB)]
    del two, three
    assert live.now == 0


def test_views_and_changes_in_place_take_no_memory():
    live = LiveMemory("cpu")
    with live:
        one = zeros(4)
        views = [one[:10], one.view(-1, 2), one[None], one.detach(), one.add_(1)]
        assert live.now == 4 * KIB
        copy = one.clone()
        assert live.now == 8 * KIB
        del one
        assert live.now == 8 * KIB  # the views hold it
        views.clear()
        assert live.now == 4 * KIB
        del copy
    assert live.now == 0
    assert live.peaks == {"loading": 8 * KIB}


def test_sizes_are_rounded_as_the_allocator_does():
    live = LiveMemory("cpu")
    with live:
        kept = [torch.zeros(1), torch.zeros(17)]
        assert live.now == 64 + 128
    kept.clear()
    with LiveMemory("cuda") as other:
        kept = [torch.zeros(1)]
        assert other.now == 0  # a tensor of another device
    assert len(kept) == 1


def test_weights_and_buffers_are_held_once():
    class Scaled(torch.nn.Linear):
        def __init__(self):
            super().__init__(16, 16, bias=False)
            self.register_buffer("scale", torch.ones(16))

    one = Scaled()
    other = Scaled()
    other.weight = one.weight  # tied
    live = LiveMemory("cpu")
    live.hold(one, other)
    assert live.now == 16 * 16 * 4 + 2 * 64
    assert live.where == {"loading": "weights"}
    assert live.peaks == {"loading": live.now}


def test_the_scales_of_quantized_layers_are_held():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compress_statistics=True, quant_type="nf4").to("cpu")
    state = layer.weight.quant_state
    parts = [layer.weight, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    live = LiveMemory("cpu")
    live.hold(layer)
    assert live.now == sum(-(-part.untyped_storage().nbytes() // 64) * 64 for part in parts)


def test_tensors_without_elements_take_no_block():
    live = LiveMemory("cpu")
    with live:
        empty = torch.zeros(0, 3)
        del empty
        kept = zeros(2)
    assert live.events == [(0, 2 * KIB)]
    assert CachingAllocator().replay(live.events)
    assert live.now == kept.nbytes


def test_the_gradient_of_a_product_is_counted():
    weight = torch.zeros(64, 64, requires_grad=True)
    live = LiveMemory("cpu")
    with live:
        (torch.zeros(8, 64) @ weight).sum().backward()
        # Only the gradient is left.
        assert live.now == weight.nbytes
    # Besides the gradient: the inputs, the sum and its gradient, which is expanded without memory.
    assert live.peaks["loading"] == weight.nbytes + 8 * 64 * 4 + 2 * 64


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_what_an_operation_takes_meanwhile_is_counted(mode):
    """In inference mode, operations that consist of others arrive whole."""
    logits, targets = torch.zeros(64, 256), torch.zeros(64, dtype=torch.long)
    live = LiveMemory("cpu")
    with mode(), live:
        torch.nn.functional.cross_entropy(logits, targets)
    assert live.peaks["loading"] >= logits.nbytes  # the log-probabilities
