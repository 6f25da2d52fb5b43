"""Shared by the operators' modules: which implementation runs, gradients, autocast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detnas_d2.ops.extension import build_info, has_extension

NAMESPACE = "detnas_d2"
_HAS_CUDA = has_extension() and build_info().endswith("CUDA yes")
# Within it calls go to the kernels, past autograd; not under torch.compile.
below_autograd = torch._C._AutoDispatchBelowAutograd
_DEVICES = {"cpu", "meta"} | ({"cuda"} if _HAS_CUDA else set()) if has_extension() else set()


def compiled(x: Tensor) -> bool:
    """Whether the compiled operator takes this input, by its device and dtype."""
    if x.device.type not in _DEVICES or not x.is_floating_point():
        return False
    return x.dtype != torch.float64 or not x.is_cuda  # for gradient checks: on the CPU only


def differentiable(op: str, setup: Callable, backward: Callable) -> Callable:
    """Registers the gradient of an operator; returns a function that calls it with little delay.

    The library's own way to a registered gradient costs tens of microseconds of Python a call,
    even without gradients: as much as the work on a small map. Tensors must be arguments of their
    own, not in lists. ``setup`` and ``backward``: as for ``torch.library.register_autograd``.
    """
    torch.library.register_autograd(f"{NAMESPACE}::{op}", backward, setup_context=setup)
    overload = getattr(getattr(torch.ops, NAMESPACE), op).default

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            with below_autograd():
                output = overload(*args)
            setup(ctx, args, output)
            return output

    Function.backward = staticmethod(backward)

    def call(*args):
        if torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled():
            return overload(*args)
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return Function.apply(*args)
        with below_autograd():
            return overload(*args)

    return call


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
    """Count, mean and m2 of an output, for fake kernels; empty vectors where none are wanted."""
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
