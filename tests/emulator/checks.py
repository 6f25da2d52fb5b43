"""The emulated CUDA kernels against the references. Run by test_emulator.py, sanitizers preloaded.

Usage: checks.py LIBRARY
"""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from detnas_d2.ops import reference
from tests.ops.compare import TOLERANCE, assert_near, channels_last

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
SHAPES = [(1, 1, 1, 1), (2, 5, 7, 9), (1, 40, 9, 6), (1, 64, 5, 11)]


class Library:
    def __init__(self, path: str) -> None:
        self.library = ctypes.CDLL(path)

    def __call__(self, name: str, *args: object) -> None:
        getattr(self.library, f"emu_{name}")(*map(_argument, args))


def _argument(value: object) -> object:
    if value is None:
        return ctypes.c_void_p()
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, list):
        return (ctypes.c_void_p * len(value))(*[v.data_ptr() for v in value])
    if isinstance(value, torch.dtype):
        return DTYPES[value]
    return ctypes.c_int64(value) if isinstance(value, Long) else int(value)


class Long(int):
    """Marks an int64_t argument."""


def tolerance(dtype: torch.dtype) -> float:
    return TOLERANCE[dtype]


def maps(shape: tuple, dtype: torch.dtype, n: int = 1) -> list[Tensor]:
    return [channels_last(torch.randn(shape)).to(dtype) for _ in range(n)]


def vectors(c: int, n: int) -> list[Tensor]:
    return [torch.randn(c) for _ in range(n)]


def pixels(x: Tensor) -> Long:
    return Long(x.shape[0] * x.shape[2] * x.shape[3])


def check_stats(lib: Library, dtype: torch.dtype, shape: tuple) -> None:
    c = shape[1]
    (x,), (a, b, mean, m2) = maps(shape, dtype), vectors(c, 4)
    for offset, args in ((0, (a, b, True)), (1000, (None, None, False))):
        z = (x.float() + offset).to(dtype)
        lib("stats", dtype, z, Long(c), *args, pixels(x), c, mean, m2)
        expected = reference.bn_stats(z, *args)
        assert_near(mean, expected.mean, 1e-4, "mean")
        assert_near(m2, expected.m2, 1e-3, "m2")


def check_transform(lib: Library, dtype: torch.dtype, shape: tuple) -> None:
    (x, out), (a, b) = maps(shape, dtype, 2), vectors(shape[1], 2)
    lib("transform", dtype, x, Long(shape[1]), a, b, True, pixels(x), shape[1], out)
    assert_near(out, reference.pending(x, a, b, True), tolerance(dtype), "transform")


def check_shuffle(lib: Library, dtype: torch.dtype, shape: tuple) -> None:
    c = shape[1]
    for method in (0, 1, 2):
        (left, right, out_l, out_r, dl, dr), (a, b) = maps(shape, dtype, 6), vectors(c, 2)
        lib("shuffle", dtype, left, right, a, b, True, c, c, method, pixels(left), out_l, out_r)
        leaves = [t.double().requires_grad_() for t in (left, right, a, b)]
        args = (leaves[0], leaves[1], None, None, leaves[2], leaves[3], False, True, method, True)
        expected = reference.shuffle_concat(*args)
        assert_near(out_l, expected[0], tolerance(dtype), "left")
        assert_near(out_r, expected[1], tolerance(dtype), "right")
        grads = maps(shape, dtype, 2)
        sums = torch.empty(2, c)
        want = torch.autograd.grad(expected, leaves, [g.double() for g in grads])
        common = (dtype, *grads, c, method, 2 * c)
        lib("affine_grad", *common, 0, left, None, None, False, pixels(left), c, dl, sums)
        assert_near(dl, want[0], tolerance(dtype), "grad_left")
        lib("affine_grad", *common, c, right, a, b, True, pixels(left), c, dr, sums)
        assert_near(dr, want[1], tolerance(dtype), "grad_right")
        assert_near(sums[0], want[2], 1e-4, "grad_scale")
        assert_near(sums[1], want[3], 1e-4, "grad_shift")


def check_mixed_sum(lib: Library, dtype: torch.dtype, shape: tuple) -> None:
    c = shape[1]
    for count in (1, 8):
        y, (residual, out, grad), scale, shift = (
            maps(shape, dtype, count), maps(shape, dtype, 3), vectors(c, count), vectors(c, count)
        )  # fmt: skip
        weights = torch.randn(count)
        common = (dtype, count, y, scale, shift, weights, residual, pixels(out), c, out)
        lib("mixed_sum", *common, None, None, None)
        leaves = [[t.double().requires_grad_() for t in ts] for ts in (y, scale, shift)]
        expected = reference.mixed_sum(*leaves, weights.double(), residual.double())
        assert_near(out, expected, tolerance(dtype), "mixed_sum")
        dy, sums = maps(shape, dtype, count), torch.empty(9, c)
        lib("mixed_sum", *common, grad, dy, sums)
        want = torch.autograd.grad(expected, leaves[0] + leaves[1], grad.double())
        for i in range(count):
            assert_near(dy[i], want[i], tolerance(dtype), "grad_y")
            assert_near(weights[i] * sums[1 + i], want[count + i], 1e-4, "grad_scale")
        assert_near(sums[0], grad.double().sum((0, 2, 3)), 1e-4, "total")


def check_depthwise(lib: Library, dtype: torch.dtype, shape: tuple) -> None:
    n, c, h, w = shape
    cases = [(3, 1, 1), (5, 2, 1), (7, 1, 1), (7, 2, 3), (3, 1, 2), (5, 1, 3)]
    for kernel, stride, dilation in cases:
        (x,), (a, b, bias, mean, m2) = maps(shape, dtype), vectors(c, 5)
        weight = torch.randn(c, 1, kernel, kernel)
        packed = weight.permute(2, 3, 1, 0).contiguous()
        leaves = [t.double().requires_grad_() for t in (x, weight)]
        y, stats = reference.depthwise_conv(
            *leaves, a.double(), b.double(), True, bias.double(), False, True, stride, dilation
        )
        out = channels_last(torch.empty(y.shape)).to(dtype)
        size = (n, c, h, w, kernel, stride, dilation)
        lib("depthwise", dtype, x, a, b, True, packed, bias, False, *size, out, mean, m2)
        assert_near(out, y, tolerance(dtype), f"depthwise {size}")
        spread = (stats.m2 / stats.count).sqrt() + stats.mean.abs() + 1e-6
        assert ((mean - stats.mean).abs() / spread).max() < 1e-4
        assert_near(m2, stats.m2, 1e-4, "m2")

        # The gradient with that of the statistics: g + d_mean / n + 2 d_m2 (y - mean).
        raw = out.detach()
        (g,), (d_mean, d_m2) = maps(y.shape, dtype), vectors(c, 2)
        add, mul, center = d_mean / stats.count.float(), 2 * d_m2, stats.mean.detach().float()
        view = lambda t: t.double().view(1, -1, 1, 1)  # noqa: E731
        total = g.double() + view(add) + view(mul) * (raw.double() - view(center))
        z = reference.pending(leaves[0], a.double(), b.double(), True).detach().requires_grad_()
        again, _ = reference.depthwise_conv(z, leaves[1], stride=stride, dilation=dilation)
        want_z, want_w = torch.autograd.grad(again, (z, leaves[1]), total)
        dx, dw = torch.empty_like(x), torch.empty_like(packed)
        lib("depthwise_grad", dtype, g, raw, add, mul, center, x, a, b, True, packed, *size, dx, dw)
        assert_near(dx, want_z, tolerance(dtype), f"grad_input {size}")
        assert_near(dw.permute(3, 2, 0, 1), want_w, 1e-3, f"grad_weight {size}")


CHECKS: tuple[Callable, ...] = (
    check_stats, check_transform, check_shuffle, check_mixed_sum, check_depthwise,
)  # fmt: skip


def main() -> None:
    lib = Library(sys.argv[1])
    torch.set_num_threads(1)
    for seed, (check, dtype) in enumerate(itertools.product(CHECKS, DTYPES)):
        shapes = SHAPES if dtype == torch.float32 else SHAPES[2:3]
        for shape in shapes:
            torch.manual_seed(seed)
            lib("seed", seed)
            check(lib, dtype, shape)
        print(f"{check.__name__} {dtype}: ok", flush=True)


if __name__ == "__main__":
    main()
