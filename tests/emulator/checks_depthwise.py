"""The emulated depthwise convolutions against the references. Usage: checks_depthwise.py LIBRARY"""

from __future__ import annotations

import torch

from detnas_d2.ops import reference
from tests.emulator.library import Library, maps, run, tolerance, vectors
from tests.ops.compare import assert_near, channels_last


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


if __name__ == "__main__":
    run(check_depthwise)
