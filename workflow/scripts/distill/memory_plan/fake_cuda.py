"""Fake tensors on a fake CUDA device: shapes, dtypes and devices without memory, in the code that a GPU would run.

An operation on tensors of two devices raises, and so does whatever needs the values of a tensor, such as `item`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

CAPABILITY = (8, 0)  # compute capability of the fake GPU, an Ampere


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention by the kernel that CUDA chooses: flash without a mask, memory-efficient with one.

    torch without a GPU would choose the kernel that materialises all scores. Arguments as in
    `torch.nn.functional.scaled_dot_product_attention`.
    """
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(dtype)
    if attn_mask is None and query.dtype != torch.float32 and query.shape[-1] <= 256:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if enable_gqa:  # the memory-efficient kernel wants as many heads of keys as of queries
        groups = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    if attn_mask is not None:
        attn_mask = align_mask(attn_mask, query, key)
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale)[0]


def align_mask(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A mask as the memory-efficient kernel takes it: additive, rows aligned to 8 elements, and expanded to all heads.

    Args:
        mask: broadcastable to (batch, heads, queries, keys).
        query: (batch, heads, queries, width).
        key: (batch, heads, keys, width).
    """
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
    if any(stride % 8 for stride in mask.stride()[:-1]):
        mask = torch.nn.functional.pad(mask, (0, 8 - mask.shape[-1] % 8))[..., : mask.shape[-1]]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


@contextmanager
def fake_cuda(device: str = "cuda") -> Iterator[FakeTensorMode]:
    """Make every new tensor a fake one; on `cuda`, torch believes in a GPU with bfloat16.

    Fake CUDA tensors need `load_cuda_guard` before torch is imported.

    Args:
        device: `cuda`, or `cpu` for fake tensors alone.
    """
    # Fake tensors would compute a tensor of one known number for real, on a device that is not there.
    patches: list[Any] = [patch.object(FakeTensorMode, "may_turn_const", lambda self, tensor: False)]
    if device == "cuda":
        patches += [
            patch.object(FakeTensorMode, "avoid_device_init", True),
            patch.object(torch.cuda, "is_available", lambda: True),
            patch.object(torch.cuda, "device_count", lambda: 1),
            patch.object(torch.cuda, "current_device", lambda: 0),
            patch.object(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True),
            patch.object(torch.cuda, "get_device_capability", lambda *args: CAPABILITY),
            patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            patch.object(torch.cuda, "empty_cache", lambda: None),
            patch.object(torch.cuda, "synchronize", lambda *args: None),
            patch.object(torch.nn.functional, "scaled_dot_product_attention", attend),
            patch.object(torch.Tensor, "pin_memory", lambda self, *args: self),
        ]
    for one in patches:
        one.start()
    try:
        with FakeTensorMode(shape_env=ShapeEnv()) as mode:
            yield mode
    finally:
        for one in reversed(patches):
            one.stop()
