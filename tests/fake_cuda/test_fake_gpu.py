"""The tools of this folder find what they are for: tensors of two devices, and waiting for the GPU."""

import pytest
import torch
from fake_gpu import CUDA, build_fake_model, build_student
from synchronisations import Synchronisations
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError


def on_gpu(*sizes, **settings):
    return torch.zeros(*sizes, device=CUDA, **settings)


def test_tensors_of_two_devices_raise():
    model = build_fake_model()
    with pytest.raises(FakeTensorDeviceMismatchError, match=r"cuda:0.*cpu"):
        model(torch.zeros(1, 4, dtype=torch.long))
    assert model(on_gpu(1, 4, dtype=torch.long)).logits.device.type == "cuda"


def test_gradients_are_on_the_gpu():
    model = build_student()
    model(on_gpu(1, 4, dtype=torch.long)).logits.sum().backward()
    assert {weight.grad.device.type for weight in model.parameters()} == {"cuda"}


def fill_by_mask():
    on_gpu(4)[on_gpu(4, dtype=torch.bool)] = 1.0


def put_by_mask():
    on_gpu(4)[on_gpu(4, dtype=torch.bool)] = on_gpu(4)


WAITS = {
    "read a number": (lambda: on_gpu(4).sum().item(), "read"),
    "branch on a value": (lambda: bool((on_gpu(4) > 0).all()), "read"),
    "read a list once": (lambda: on_gpu(4, 3).tolist(), "read"),
    "compare": (lambda: torch.equal(on_gpu(4), on_gpu(4)), "read"),
    "to the CPU": (lambda: on_gpu(4).cpu(), "copy from cuda to cpu"),
    "to the GPU": (lambda: torch.zeros(4).to(CUDA), "copy from cpu to cuda"),
    "a new tensor on the GPU": (lambda: torch.tensor([1, 2], device=CUDA), "copy from cpu to cuda"),
    "assign from the CPU": (lambda: on_gpu(4).copy_(torch.zeros(4)), "copy from cpu to cuda"),
    "take by a mask": (lambda: on_gpu(4)[on_gpu(4) > 0], "index of booleans"),
    "put by a mask": (put_by_mask, "index of booleans"),
    "index from the CPU": (lambda: on_gpu(4)[torch.tensor([0, 1])], "index on the CPU"),
    "where": (lambda: on_gpu(4).nonzero(), "nonzero"),
    "distinct values": (lambda: on_gpu(4).unique(), "_unique2"),
    "synchronize": (lambda: torch.cuda.synchronize(), "synchronize"),
}


@pytest.mark.parametrize("is_inference", [False, True], ids=["autograd", "inference mode"])
@pytest.mark.parametrize("name", WAITS)
def test_waiting_is_found(name, is_inference):
    call, what = WAITS[name]
    with torch.inference_mode(is_inference), Synchronisations() as waits:
        call()
    assert [kind for kind, _ in waits.found] == [what]
    assert waits.total() == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: on_gpu(4).add(1).softmax(-1),
        lambda: torch.zeros(4).pin_memory().to(CUDA, non_blocking=True),
        lambda: on_gpu(4).copy_(torch.zeros(4), non_blocking=True),
        lambda: on_gpu(4)[on_gpu(2, dtype=torch.long)],
        lambda: on_gpu(4).to(torch.bfloat16),
        lambda: torch.zeros(4).sum().item(),
        lambda: torch.tensor([], device=CUDA),
        fill_by_mask,
    ],
)
def test_other_operations_do_not_wait(call):
    with Synchronisations() as waits:
        call()
    assert not waits.found


def test_the_place_is_a_function_of_the_library():
    from distill.student.callbacks import FiniteCheck

    check = FiniteCheck()
    with Synchronisations() as waits:
        check.note("loss", 1, ["a"], on_gpu(1)[0])
        assert not waits.found
        check.check(None)
    assert waits.found == {("read", "callbacks.py: check"): 1}
