"""The emulated 1x1 convolutions on tensor cores against the references.

Usage: checks_pointwise.py LIBRARY
"""

from __future__ import annotations

import torch
from torch import Tensor

from detnas_d2.ops import reference
from tests.emulator.library import Library, Long, maps, pixels, run, vectors
from tests.ops.compare import TOLERANCE, assert_near, channels_last

OUT_CHANNELS = (1, 24, 70)  # scalar, within a tile, and one and a bit
# float32 is multiplied with 10 bits of mantissa (TF32).
PRODUCT = TOLERANCE | {torch.float32: 2e-3}


def weights(n: int, c: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(n, c, 1, 1) / c**0.5).to(dtype)


def check_forward(lib: Library, dtype: torch.dtype, shape: tuple) -> None:
    c = shape[1]
    for n in OUT_CHANNELS:
        (x,), w = maps(shape, dtype), weights(n, c, dtype)
        a, b = vectors(c, 2)
        bias, mean, m2 = vectors(n, 3)
        for args, stats in (((a, b, True), True), ((None, None, False), False)):
            y, want = reference.pointwise_conv(
                x.double(), w.double(), *(None if v is None else v.double() for v in args[:2]),
                args[2], bias.double(), not stats, stats,
            )  # fmt: skip
            out = maps(y.shape, dtype)[0]
            moments = (mean, m2) if stats else (None, None)
            lib("pointwise", dtype, x, Long(c), *args, w, bias, not stats, pixels(x), c, n, out,
                Long(n), *moments)  # fmt: skip
            assert_near(out, y, PRODUCT[dtype], f"y {shape} {n}")
            if stats:
                spread = (want.m2 / want.count).sqrt() + want.mean.abs() + 1e-6
                assert ((mean - want.mean).abs() / spread).max() < PRODUCT[dtype]
                assert_near(m2, want.m2, 2 * PRODUCT[dtype] + 1e-3, "m2")


def check_views(lib: Library, dtype: torch.dtype, shape: tuple) -> None:
    """Channels of a wider map, read and written in place; what lies beside them stays."""
    n, c, h, w = shape
    for before, after in ((8, 8), (3, 2)):
        (wide,), weight = maps((n, before + c + after, h, w), dtype), weights(c, c, dtype)
        (out,), zero = maps((n, before + c + after, h, w), dtype), torch.zeros(c)
        kept = out.clone()
        x = wide[:, before : before + c]
        lib("pointwise", dtype, x, Long(wide.shape[1]), None, None, False, weight, zero, False,
            pixels(x), c, c, out[:, before:], Long(out.shape[1]), None, None)  # fmt: skip
        y, _ = reference.pointwise_conv(x.double(), weight.double())
        assert_near(out[:, before : before + c], y, PRODUCT[dtype], "view")
        assert torch.equal(out[:, :before], kept[:, :before])
        assert torch.equal(out[:, before + c :], kept[:, before + c :])


def check_not_finite(lib: Library, dtype: torch.dtype, shape: tuple) -> None:
    """NaN and infinity reach their pixel's outputs and no others."""
    c = shape[1]
    (x,), w = maps(shape, dtype), torch.full((c, c, 1, 1), 0.5).to(dtype)
    x[0, 0, 0, 0], x[-1, -1, -1, -1] = float("nan"), float("inf")
    out = maps(shape, dtype)[0]
    lib("pointwise", dtype, x, Long(c), None, None, False, w, torch.zeros(c), False, pixels(x), c,
        c, out, Long(c), None, None)  # fmt: skip
    y, _ = reference.pointwise_conv(x.double(), w.double())
    assert torch.equal(out.isnan(), y.isnan()) and torch.equal(out.isinf(), y.isinf())


def check_backward(lib: Library, dtype: torch.dtype, shape: tuple) -> None:
    c = shape[1]
    for n, splits, pending in ((24, 1, True), (70, 3, False)):
        (x,), w = maps(shape, dtype), weights(n, c, dtype)
        a, b = (v.double().requires_grad_() for v in vectors(c, 2)) if pending else (None, None)
        leaves = [x.double().requires_grad_(), w.double().requires_grad_()]
        y, stats = reference.pointwise_conv(*leaves, a, b, pending, want_stats=True)
        raw = channels_last(y.detach()).to(dtype)
        (g,), (d_mean, d_m2) = maps(y.shape, dtype), vectors(n, 2)
        d_m2 /= stats.count.float()
        add, mul, center = d_mean / stats.count.float(), 2 * d_m2, stats.mean.detach().float()
        view = lambda t: t.double().view(1, -1, 1, 1)  # noqa: E731
        total = g.double() + view(add) + view(mul) * (raw.double() - view(center))
        inputs = leaves + ([a, b] if pending else [])
        want = torch.autograd.grad(y, inputs, total)
        dx, dw, sums = torch.empty_like(x), torch.empty(n, c, 1, 1), torch.empty(2, c)
        scale, shift = (a.detach().float(), b.detach().float()) if pending else (None, None)
        lib("pointwise_grad", dtype, g, raw, add, mul, center, x, scale, shift, pending, w,
            pixels(x), c, n, splits, dx, sums if pending else None, dw)  # fmt: skip
        assert_near(dx, want[0], PRODUCT[dtype], "grad_x")
        assert_near(dw, want[1], PRODUCT[dtype], "grad_weight")
        if pending:
            assert_near(sums[0], want[2], 2 * PRODUCT[dtype], "grad_scale")
            assert_near(sums[1], want[3], 2 * PRODUCT[dtype], "grad_shift")


if __name__ == "__main__":
    run(check_forward, check_views, check_not_finite, check_backward)
