"""Shared by the operators' modules: which implementation runs, gradients, autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from detnas_d2.ops.autograd_function import function, function_of_lists
from detnas_d2.ops.extension import build_info, has_extension
from detnas_d2.utils.compat import (
    any_requires_grad,
    below_autograd,
    excluding,
    in_forward_differentiation,
    in_function_transform,
    is_any_autocast_enabled,
)

T = TypeVar("T")

NAMESPACE = "detnas_d2"
_HAS_CUDA = has_extension() and build_info().endswith("CUDA yes")
_DEVICES = {"cpu", "meta"} | ({"cuda"} if _HAS_CUDA else set()) if has_extension() else set()


def compiled(x: Tensor) -> bool:
    """Whether the compiled operator takes this input, by its device and dtype."""
    if x.device.type not in _DEVICES or not x.is_floating_point():
        return False
    return x.dtype != torch.float64 or not x.is_cuda  # for gradient checks: on the CPU only


def transforming() -> bool:
    """Whether torch.func or forward-mode differentiation is at work.

    The operators have gradients only; the references, made of PyTorch's operators, have the rest.
    """
    return in_forward_differentiation() or in_function_transform()


def takes(x: Tensor) -> bool:
    """Whether a call with this input goes to the compiled operator, not to the reference."""
    return compiled(x) and not transforming()


def by_reference(op: str, reference: Callable[..., T], *args: object) -> T:
    """The reference, under autocast with the operator's casts and no others."""
    if not is_any_autocast_enabled():
        return reference(*args)
    device = next(tensors(args)).device.type
    with torch.autocast(device, enabled=False) if device in _AUTOCAST else nullcontext():
        return reference(*_cast(op, args))


def operator(op: str) -> Any:
    """The compiled operator, to be called with all of its arguments, in order."""
    return getattr(getattr(torch.ops, NAMESPACE), op).default


def absent(op: str) -> Callable[..., Any]:
    """Stands for an operator that no reference can take the place of, where it is not compiled."""

    def call(*_: object) -> Any:
        raise RuntimeError(f"{op}: needs the compiled library: {build_info()}")

    return call


def caller(op: str, run: Callable | None = None) -> Callable:
    """A function that calls ``run``, by default the operator, cast as autocast would.

    Autocast's own way to the casts is a kernel in Python: tens of microseconds a call.
    """
    overload = operator(op)
    run = run or overload

    def call(*args):
        if torch.compiler.is_compiling():
            return overload(*args)
        if not is_any_autocast_enabled():
            return run(*args)
        args = _cast(op, args)
        with _without_autocast():
            return run(*args)

    return call


def differentiable(op: str, setup: Callable, backward: Callable) -> Callable:
    """Registers the gradient of an operator; returns a function that calls it with little delay.

    The library's own way to a registered gradient costs tens of microseconds of Python a call,
    hundreds where tensors stand in lists: as much as the work on a small map. ``setup`` and
    ``backward``: as for ``torch.library.register_autograd``, but that they must do without
    ``ctx.needs_input_grad`` where the operator takes lists; where gradients are recorded,
    ``backward`` leaves its work to :func:`recorded_gradients`.
    """
    torch.library.register_autograd(f"{NAMESPACE}::{op}", backward, setup_context=setup)
    overload = operator(op)

    def forward(ctx, *args):
        with below_autograd():
            output = overload(*args)
        setup(ctx, args, output)
        return output

    lists = any(isinstance(a.type, torch.ListType) for a in overload._schema.arguments)
    apply = (function_of_lists if lists else function)(forward, backward)

    def run(*args):
        if torch.is_grad_enabled() and any_requires_grad(*args):
            return apply(*args)
        with below_autograd():
            return overload(*args)

    return caller(op, run)


def recorded_gradients(
    reference: Callable, args: Sequence[object], grads: Sequence[Tensor | None]
) -> list[object]:
    """Gradients of an operator's arguments by its reference, which is computed once more.

    The operators' own backward passes cannot be differentiated again, as these can where gradients
    are recorded (``create_graph=True``), and know one batch only.

    Args:
        reference: gives the operator's outputs, or only the first of them, in its order.
        args: of the operator: tensors, lists of tensors, others.
        grads: of the outputs, None where there are none.

    Returns:
        one item per argument: a gradient, a list of gradients, or None.
    """
    # Aliases, or what one argument owes to another would be counted twice.
    alias = lambda a: a.view_as(a) if isinstance(a, Tensor) else a  # noqa: E731
    device, record = next(tensors(args)).device.type, torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(device, enabled=False):
        args = [[alias(t) for t in a] if isinstance(a, (list, tuple)) else alias(a) for a in args]
        outputs = zip(tensors(reference(*args)), grads, strict=False)
        pairs = [(y, g) for y, g in outputs if g is not None and y.requires_grad]
        wanted = [t for t in tensors(args) if t.requires_grad]
        found = iter(
            torch.autograd.grad(
                [y for y, _ in pairs], wanted, [g for _, g in pairs], create_graph=record,
                allow_unused=True,
            )
        )  # fmt: skip
    of = lambda a: next(found) if isinstance(a, Tensor) and a.requires_grad else None  # noqa: E731
    return [[of(t) for t in a] if isinstance(a, list) else of(a) for a in args]


def tensors(value: object) -> Iterator[Tensor]:
    """All tensors inside nested lists and tuples, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


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


def vectors(like: Tensor, channels: int, batches: int) -> Tensor:
    """A vector of each batch, for fake kernels."""
    return wide(like, channels) if batches == 1 else wide(like, batches, channels)


def fake_stats(
    like: Tensor, want: bool, channels: int, batches: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and m2 of an output, for fake kernels; empty vectors where none are wanted."""
    c = channels if want else 0
    count = torch.empty((), dtype=torch.float64, device=like.device)
    return count, vectors(like, c, batches), vectors(like, c, batches)


_CASTS: dict[str, Callable[..., tuple]] = {}
_AUTOCAST = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}
_without_autocast = excluding(*_AUTOCAST.values())


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast has products computed in where ``x`` is; None where it is off."""
    if not is_any_autocast_enabled():
        return None
    device = x.device.type
    if device not in _AUTOCAST:
        return None
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _cast(op: str, args: tuple) -> tuple:
    """Arguments of ``op`` as autocast wants them where it is on."""
    dtype = autocast_dtype(next(tensors(args))) if op in _CASTS else None
    return args if dtype is None else _CASTS[op](dtype, *args)


def register_autocast(op: str, casts: Callable[..., tuple]) -> None:
    """Under autocast, run ``op`` on ``casts(dtype, *args)``: maps and weights, not statistics."""
    _CASTS[op] = casts
    if not has_extension():
        return
    overload = operator(op)

    def run(*args):
        args = _cast(op, args)
        with _without_autocast():
            return overload(*args)

    for key in _AUTOCAST.values():
        torch.library.impl(f"{NAMESPACE}::{op}", key)(run)


def register_fake(op: str, fake: Callable) -> None:
    """The kernel of ``op`` for tensors without values, which must all be on one device."""

    def checked(*args):
        devices = {t.device for t in tensors(args)}
        if len(devices) > 1:
            raise RuntimeError(
                f"{op}: expected tensors on one device, got {sorted(map(str, devices))}"
            )
        return fake(*args)

    torch.library.register_fake(f"{NAMESPACE}::{op}", checked)


def lower(t: Tensor, dtype: torch.dtype) -> Tensor:
    """``t`` in the autocast dtype; float64 stays, as in PyTorch's own autocast."""
    return t if t.dtype in (dtype, torch.float64) else t.to(dtype)
