"""Shared by the operators' modules: which implementation runs, autocast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detnas_d2.ops.extension import build_info, has_extension

NAMESPACE = "detnas_d2"
_HAS_CUDA = has_extension() and build_info().endswith("CUDA yes")


def compiled(x: Tensor) -> bool:
    """Whether the compiled operator takes this input, by its device and dtype."""
    if not has_extension() or not x.is_floating_point():
        return False
    return x.device.type in ("cpu", "meta") or (x.is_cuda and _HAS_CUDA)


def undefined(t: Tensor | None) -> Tensor | None:
    """None for the empty tensors that stand for missing outputs."""
    return None if t is None or t.numel() == 0 else t


def channels_last(like: Tensor, *shape: int | torch.SymInt) -> Tensor:
    """An empty map of ``shape``, for fake kernels."""
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def wide(like: Tensor, *shape: int | torch.SymInt) -> Tensor:
    """An empty tensor in the dtype of statistics, for fake kernels."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.empty(shape, dtype=dtype, device=like.device)


def fake_stats(like: Tensor, want: bool, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    c = channels if want else 0
    count = torch.empty((), dtype=torch.float64, device=like.device)
    return count, wide(like, c), wide(like, c)


def register_autocast(op: str, casts: Callable[..., tuple]) -> None:
    """Under autocast, run ``op`` on ``casts(dtype, *args)``: maps and weights, not statistics."""
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def run(*args, _device=device, _keys=keys):
            dtype = torch.get_autocast_dtype(_device)
            with torch._C._ExcludeDispatchKeyGuard(_keys):
                return getattr(torch.ops.detnas_d2, op)(*casts(dtype, *args))

        torch.library.impl(f"{NAMESPACE}::{op}", key)(run)


def lower(t: Tensor, dtype: torch.dtype) -> Tensor:
    """``t`` in the autocast dtype; float64 stays, as in PyTorch's own autocast."""
    return t if t.dtype == torch.float64 else t.to(dtype)
