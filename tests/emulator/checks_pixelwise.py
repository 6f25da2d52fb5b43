"""The emulated statistics, shuffles and mixed sums against the references.

Usage: checks_pixelwise.py LIBRARY
"""

from __future__ import annotations

import torch

from detnas_d2.ops import reference
from tests.emulator.library import Library, Long, maps, pixels, run, tolerance, vectors
from tests.ops.compare import assert_near


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


if __name__ == "__main__":
    run(check_stats, check_transform, check_shuffle, check_mixed_sum)
