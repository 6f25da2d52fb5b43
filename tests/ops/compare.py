"""Operators against their references in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from detnas_d2.ops import BNStats, reference

CAPABILITIES = ("default", "avx2", "avx512")
# Largest error relative to the largest value, for results rounded to the dtype.
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 2e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}


@contextmanager
def capability(name: str) -> Iterator[None]:
    """Runs with the kernels of one instruction set; skips where the machine lacks it."""
    import pytest  # not at the top: cuda_checks.py does without

    previous = torch.ops.detnas_d2.cpu_capability()
    try:
        torch.ops.detnas_d2.set_cpu_capability(name)
    except RuntimeError:
        pytest.skip(f"{name} is not available on this machine")
    try:
        yield
    finally:
        torch.ops.detnas_d2.set_cpu_capability(previous)


def tensors(value: object) -> list[Tensor]:
    """All tensors inside nested tuples and lists, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in tensors(v)]
    return []


def convert(value: object, dtype: torch.dtype | None, grad: bool = False) -> object:
    if isinstance(value, Tensor):
        return value.detach().to(dtype).requires_grad_(grad)
    if isinstance(value, (list, tuple)):
        return [convert(v, dtype, grad) for v in value]
    return value


@contextmanager
def noisy_products(noise: float) -> Iterator[None]:
    """Convolutions whose operands, gradients included, are off by up to ``noise`` of each value."""
    exact = F.conv2d

    def off(t: Tensor) -> Tensor:
        return t * (1 + noise * (2 * torch.rand_like(t) - 1))

    def conv2d(x: Tensor, weight: Tensor, *rest: object, **options: object) -> Tensor:
        y = exact(off(x), off(weight), *rest, **options)
        y.register_hook(off)
        return y

    with mock.patch.object(F, "conv2d", conv2d):
        yield


class _StatsOfStored(torch.autograd.Function):
    """Mean and m2 of a convolution's result, whose gradients see it as it was stored."""

    @staticmethod
    def forward(ctx, y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        _, mean, m2 = reference.bn_stats(y)
        ctx.save_for_backward(y.to(dtype).to(y.dtype), mean)
        return mean, m2

    @staticmethod
    def backward(ctx, grad_mean: Tensor, grad_m2: Tensor) -> tuple[Tensor, None]:
        y, *vectors = ctx.saved_tensors
        mean, of_mean, of_m2 = (v.view(1, -1, 1, 1) for v in (*vectors, grad_mean, grad_m2))
        return of_mean * y.shape[1] / y.numel() + 2 * of_m2 * (y - mean), None


@contextmanager
def stored_as(dtype: torch.dtype) -> Iterator[None]:
    """References whose convolutions keep their result in ``dtype`` for the backward pass.

    The operators make statistics of the result before it is rounded, and gradients of statistics
    from what is left of it. Where such gradients nearly cancel in a sum, the rounding is all that
    is seen.
    """
    finish = reference._finish_conv

    def stored(y: Tensor, x: Tensor, out_relu: bool, want_stats: bool) -> tuple:
        out, stats = finish(y, x, out_relu, want_stats)
        return out, stats and BNStats(stats.count, *_StatsOfStored.apply(y, dtype))

    with mock.patch.object(reference, "_finish_conv", stored):
        yield


def assert_near(
    actual: Tensor, expected: Tensor, tolerance: float, what: str = "", slack: float = 0.0
) -> None:
    assert actual.shape == expected.shape, f"{what}: {actual.shape} is not {expected.shape}"
    a, e = actual.double(), expected.double()
    assert torch.equal(a.isnan(), e.isnan()), f"{what}: NaN in other places"
    if a.numel() == 0:
        return
    a, e = a.nan_to_num(), e.nan_to_num()
    scale = max(e.abs().max().item(), 1e-6)
    error, tolerance = (a - e).abs().max().item() / scale, tolerance + slack / scale
    assert error <= tolerance, f"{what}: relative error {error:.2g} > {tolerance:.2g}"


def check_values(op: Callable, reference: Callable, args: tuple, tolerance: float) -> None:
    """``op`` on the arguments as they are, against the reference on them in float64."""
    actual = tensors(op(*args))
    expected = tensors(reference(*convert(args, torch.float64)))
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_near(a, e, tolerance, f"output {i}")


def check_gradients(
    op: Callable,
    reference: Callable,
    args: tuple,
    dtype: torch.dtype,
    tolerance: float,
    noise: float = 0.0,
) -> None:
    """Gradients of all floating arguments for random gradients of all outputs.

    Args:
        noise: by how much products round their operands. What is added up may nearly cancel, so
            the bound follows from what such noise does to the reference (up to four times that).
    """
    narrow = dtype.itemsize == 2

    def run(f: Callable, kind: torch.dtype | None, grads: list[Tensor] | None) -> tuple:
        leaves = convert(args, kind, grad=True)
        outputs = [t for t in tensors(f(*leaves)) if t.requires_grad]
        if narrow:  # statistics are of what was rounded later: their gradients differ by that
            outputs = [t for t in outputs if t.dim() == 4]
        if grads is None:
            grads = [torch.randn(t.shape, dtype=torch.float64) for t in outputs]
            grads = [g.to(dtype).double() if narrow else g for g in grads]
        cast = [g.to(t.dtype) for g, t in zip(grads, outputs, strict=True)]
        return torch.autograd.grad(outputs, tensors(leaves), cast, allow_unused=True), grads

    expected, grads = run(reference, torch.float64, None)
    # Arguments of 16 bits are so already; the vectors beside them are not.
    actual, _ = run(op, None if narrow else dtype, grads)
    slack = [0.0] * len(expected)
    for _ in range(8 if noise else 0):
        with noisy_products(noise):
            off, _ = run(reference, torch.float64, grads)
        for i, (a, e) in enumerate(zip(off, expected, strict=True)):
            slack[i] = max(slack[i], 0.0 if e is None else 4 * (a - e).abs().max().item())
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert (a is None) == (e is None), f"gradient {i} is missing or superfluous"
        if e is not None:
            assert_near(a, e, tolerance, f"gradient {i}", slack[i])


def channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def layouts(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The same shape in every layout that a kernel may meet."""
    n, c, h, w = shape
    return [
        channels_last(torch.randn(shape, dtype=dtype)),
        torch.randn(shape, dtype=dtype),
        channels_last(torch.randn(n, 2 * c, h, w, dtype=dtype))[:, c:],
        channels_last(torch.randn(n, 2 * c, h, w, dtype=dtype))[:, 1::2],
        torch.randn(n, c, w, h, dtype=dtype).transpose(2, 3),
    ]


def block(c: int, kernel: int, stride: int) -> tuple[list, list]:
    """Random folded weights of a block with c input channels."""
    main_in = c // 2 if stride == 1 else c
    out, mid = (c // 2, c // 2) if stride == 1 else (c, c)
    if kernel == 0:
        shapes = [(main_in, 1, 3), (mid, main_in, 1), (mid, 1, 3), (mid, mid, 1), (mid, 1, 3)]
        shapes += [(out, mid, 1)]
    else:
        shapes = [(mid, main_in, 1), (mid, 1, kernel), (out, mid, 1)]
    if stride == 2:
        shapes += [(c, 1, kernel or 3), (c, c, 1)]
    weights = [torch.randn(o, i, k, k) / (i * k) for o, i, k in shapes]
    return weights, [torch.randn(s[0]) for s in shapes]
