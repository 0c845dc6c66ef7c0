"""Find what makes the CPU wait for a GPU, without one: in operations on fake CUDA tensors."""

import traceback
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

LIBRARY = str(Path(__file__).resolve().parents[2] / "workflow")
TORCH = str(Path(torch.__file__).parent)
# Operations whose result, or its size, the CPU has to know.
READS = {"_local_scalar_dense", "equal", "allclose", "is_nonzero", "nonzero", "masked_select", "_unique2", "bincount"}
READS |= {"unique_consecutive", "unique_dim", "repeat_interleave"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Synchronisations(TorchDispatchMode):
    """Counts the operations that make the CPU wait for a GPU.

    A copy between CPU and GPU waits unless it is `non_blocking`. So do reading a number, and operations whose result
    has a size that depends on values, such as an index of booleans. A `tolist` counts once.

    Fake tensors have no values: what is read is `number`, or True.

    Args:
        number: what is read from a tensor of numbers.
        untrue: the functions, as in `found`, that read False from a tensor of booleans.

    Attributes:
        found: how often each line of the library waits, by (what, function).
    """

    def __init__(self, number=1, untrue=()):
        super().__init__()
        self.number, self.untrue = number, untrue
        self.found = Counter()
        self.depth = 0
        self.patches = [
            patch.object(FakeTensor, "tolist", lambda tensor: self.read_list(tensor)),
            patch.object(torch.cuda, "synchronize", lambda *device: self.note("synchronize")),
        ]

    def __enter__(self):
        if not self.depth:
            for one in self.patches:
                one.start()
        self.depth += 1
        return super().__enter__()

    def __exit__(self, *error):
        self.depth -= 1
        if not self.depth:
            for one in self.patches:
                one.stop()
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name.removeprefix("aten::")
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
        if name in ("item", "_local_scalar_dense", "equal", "allclose", "is_nonzero"):
            if any(one.device.type == "cuda" for one in tensors):
                self.note("read")
            is_truth = name in ("equal", "allclose", "is_nonzero")
            return self.make_value(torch.bool if is_truth else tensors[0].dtype)
        if function.namespace == "aten":  # in inference mode, operations arrive before they are divided into others
            with self:
                divided = function.decompose(*args, **kwargs)
            if divided is not NotImplemented:
                return divided
        result = function(*args, **kwargs)
        if what := find_wait(name, tensors, args, kwargs, result):
            self.note(what)
        return result

    def note(self, what):
        self.found[what, find_caller()] += 1

    def read_list(self, tensor):
        """The nested list of a tensor's values."""
        if tensor.device.type == "cuda":
            self.note("read")
        values = self.make_value(tensor.dtype)
        for size in reversed(tensor.shape):
            values = [values] * size
        return values

    def make_value(self, dtype):
        """What is read from a fake tensor."""
        if dtype == torch.bool:
            return find_caller() not in self.untrue
        return float(self.number) if dtype.is_floating_point else self.number

    def total(self):
        return sum(self.found.values())


def find_wait(name, tensors, args, kwargs, result):
    """What makes the CPU wait in an operation; None if nothing does."""
    if name in ("_to_copy", "copy_"):
        is_waiting = result.numel() and not (kwargs.get("non_blocking") or (name == "copy_" and True in args[2:]))
        source, target = tensors[-1 if name == "copy_" else 0].device.type, result.device.type
        return f"copy from {source} to {target}" if is_waiting and source != target else None
    if not any(one.device.type == "cuda" for one in tensors):
        return None
    if name in INDEXING:
        indices = [one for one in args[1] if one is not None]
        is_filled = name != "index" and args[2].numel() == 1  # computed with a mask
        if any(one.dtype in (torch.bool, torch.uint8) for one in indices) and not is_filled:
            return "index of booleans"
        if any(one.device.type == "cpu" for one in indices):
            return "index on the CPU"
    return name if name in READS else None


def find_caller():
    """The innermost function of the library in the stack, or else of any code but torch and the tests."""
    frames = [one for one in traceback.extract_stack() if not one.filename.startswith((TORCH, __file__))]
    frame = next((one for one in reversed(frames) if one.filename.startswith(LIBRARY)), frames[-1])
    return f"{Path(frame.filename).name}: {frame.name}"
