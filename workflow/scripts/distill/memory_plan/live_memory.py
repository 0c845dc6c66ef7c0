"""Count the memory of the tensors that are alive, by watching every operation."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

GRANULE = {"cuda": 512, "cpu": 64}  # bytes to which the allocators round
FEW_ROWS = 8  # which 4-bit kernels multiply without dequantizing the weights
Point = tuple[str, str]  # a phase and an operation in it
Event = tuple[int, int]  # number of an allocation, and its bytes; 0 when it is freed


class LiveMemory(TorchDispatchMode):
    """Watches the storages of one type of device: their total size, its peak, and the order of allocations.

    Args:
        kind: type of the device.

    Attributes:
        phase: name of what runs now.
        now: bytes that are alive.
        tops: largest number of bytes alive, by phase and operation.
        events: allocations and releases in their order, for `CachingAllocator.replay`.
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.granule = kind, GRANULE[kind]
        self.phase = "loading"
        self.now = 0
        self.tops: dict[Point, int] = {}
        self.events: list[Event] = []
        self.sizes: dict[int, int] = {}  # by address of the storage
        self.numbers: dict[int, int] = {}

    def hold(self, *modules: torch.nn.Module) -> None:
        """Count the weights and buffers of modules, with the scales of quantized ones."""
        for module in modules:
            for tensor in [*module.parameters(), *module.buffers()]:
                for part in (tensor, *list_scales(tensor)):
                    self.add(part)
            for layer in module.modules():
                for part in list_scales(getattr(layer, "state", None)):
                    self.add(part)
        self.note("weights", 0)

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, until it is freed."""
        if tensor.device.type != self.kind:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        size = storage.nbytes()
        # Some sizes are only known on a GPU: those of the outlier columns of LLM.int8(), which are few.
        if key in self.sizes or not isinstance(size, int) or not size:
            return
        size = -(-size // self.granule) * self.granule
        self.sizes[key] = size
        self.now += size
        self.numbers[key] = len(self.events)
        self.events.append((len(self.events), size))
        weakref.finalize(storage, self.remove, key).atexit = False

    def remove(self, key: int) -> None:
        """Forget a storage that is freed."""
        self.now -= self.sizes.pop(key)
        self.events.append((self.numbers.pop(key), 0))

    def note(self, what: str, extra: int) -> None:
        """Keep the largest number of bytes alive.

        Args:
            what: what runs.
            extra: bytes that it takes besides the tensors.
        """
        point = self.phase, what
        self.tops[point] = max(self.tops.get(point, 0), self.now + extra)

    @property
    def peaks(self) -> dict[str, int]:
        """Largest number of bytes alive, by phase."""
        return {phase: self.tops[point] for phase, point in self.highest.items()}

    @property
    def where(self) -> dict[str, str]:
        """Operation that reached the phase's peak, by phase."""
        return {phase: what for phase, (_, what) in self.highest.items()}

    @property
    def highest(self) -> dict[str, Point]:
        """Phase and operation of the phase's peak, by phase."""
        points = sorted(self.tops, key=lambda point: self.tops[point])
        return {point[0]: point for point in points}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and is_composite(func):
            with self:
                divided = func.decompose(*args, **kwargs)
            if divided is not NotImplemented:
                return divided
        found = func(*args, **kwargs)
        before = self.now
        for one in tree_flatten(found)[0]:
            if isinstance(one, torch.Tensor):
                self.add(one)
        extra = count_kernel_memory(str(func), args)
        if extra:
            number = len(self.events)
            self.events += [(number, extra), (number, 0)]
        if self.now > before or extra:
            self.note(str(func).removesuffix(".default").removesuffix(".Tensor"), extra)
        return found


def is_composite(func: Any) -> bool:
    """Whether an operation of torch has no kernel of its own; in inference mode it arrives before it is divided.

    Kernels of the CPU stand for those of CUDA, which a build without CUDA does not have.
    """
    return func.namespace == "aten" and not torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CPU")


def list_scales(owner: Any) -> list[torch.Tensor]:
    """The tensors that bitsandbytes attaches to quantized weights or to the state of their layer."""
    found = [getattr(owner, name, None) for name in ("CB", "SCB")]
    state = getattr(owner, "quant_state", None)
    for part in (state, getattr(state, "state2", None)):
        found += [getattr(part, name, None) for name in ("absmax", "code", "offset")]
    return [one for one in found if isinstance(one, torch.Tensor)]


def count_kernel_memory(name: str, args: Any) -> int:
    """The bytes that a CUDA kernel of bitsandbytes 0.50 takes besides its outputs.

    LLM.int8() finds outliers with an absolute copy and a mask, and multiplies to int32 before it converts. Products of
    many rows with 4-bit weights dequantize a layer's weights first.
    """
    if name.startswith("bitsandbytes.gemm_4bit") and args[0].numel() // args[0].shape[-1] > FEW_ROWS:
        return args[2][0] * args[2][1] * args[0].element_size()
    if name.startswith("bitsandbytes.int8_vectorwise_quant"):
        return args[0].numel() * 3
    if name.startswith("bitsandbytes.int8_mixed_scaled_mm"):
        return args[1].numel() // args[1].shape[-1] * args[2].shape[0] * 6
    if name.startswith("bitsandbytes.int8_scaled_mm"):
        return args[0].numel() // args[0].shape[-1] * args[1].shape[0] * 6
    return 0
