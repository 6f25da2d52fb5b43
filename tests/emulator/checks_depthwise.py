"""The emulated depthwise convolutions against the references. Usage: checks_depthwise.py LIBRARY"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from detnas_d2.ops import reference
from tests.emulator.library import Library, maps, run, tolerance, vectors
from tests.ops.compare import assert_near, channels_last


@dataclass
class Candidate:
    """One convolution of a launch: arguments, and what the reference makes of them."""

    x: Tensor
    weight: Tensor
    scale: Tensor
    shift: Tensor
    bias: Tensor
    kernel: int
    dilation: int

    def sizes(self) -> list[int]:
        n, c, h, w = self.x.shape
        ld = self.x.stride(3) if w > 1 else self.x.stride(2) if h > 1 else c
        return [n, c, h, w, ld, self.kernel, self.dilation]


def candidate(
    shape: tuple, dtype: torch.dtype, kernel: int, dilation: int, offset: int = 0
) -> Candidate:
    """With ``offset``, x is the last channels of a wider map: unaligned unless it is 8."""
    n, c, h, w = shape
    (wide,) = maps((n, c + offset, h, w), dtype)
    weight = torch.randn(c, 1, kernel, kernel).to(dtype)
    return Candidate(wide[:, offset:], weight, *vectors(c, 3), kernel, dilation)


def vector_view(v: Tensor) -> Tensor:
    return v.double().view(1, -1, 1, 1)


def forward(
    lib: Library, dtype: torch.dtype, cs: list[Candidate], stride: int, limits: tuple
) -> None:
    sizes = torch.tensor([c.sizes() for c in cs], dtype=torch.int32)
    want = [
        reference.depthwise_conv(
            c.x.double(), c.weight.double(), c.scale.double(), c.shift.double(), True,
            c.bias.double(), False, True, stride, c.dilation,
        )
        for c in cs
    ]  # fmt: skip
    out = [channels_last(torch.empty(y.shape)).to(dtype) for y, _ in want]
    counts = [torch.zeros((), dtype=torch.float64) for _ in cs]
    mean, m2 = ([torch.empty(c.x.shape[1]) for c in cs] for _ in range(2))
    columns = [[getattr(c, name) for c in cs] for name in ("x", "scale", "shift", "weight", "bias")]
    x, scale, shift, weight, bias = columns
    lib("depthwise", dtype, len(cs), sizes, x, scale, shift, True, weight, bias, False, stride,
        *limits, out, counts, mean, m2)  # fmt: skip
    for i, (y, stats) in enumerate(want):
        what = f"{cs[i].sizes()} stride {stride}"
        assert_near(out[i], y, tolerance(dtype), what)
        assert counts[i] == stats.count
        spread = (stats.m2 / stats.count).sqrt() + stats.mean.abs() * 1e-3 + 1e-6
        assert ((mean[i] - stats.mean).abs() / spread).max() < 1e-3, what
        assert_near(m2[i], stats.m2, 1e-4, f"m2 {what}")


def backward(
    lib: Library, dtype: torch.dtype, cs: list[Candidate], stride: int, limits: tuple, source: str
) -> None:
    """``source``: the gradient alone, that with the statistics' (stats), or through ReLU (relu)."""
    sizes = torch.tensor([c.sizes() for c in cs], dtype=torch.int32)
    args, wants = [], []
    for c in cs:
        leaves = [t.double().requires_grad_() for t in (c.x, c.weight, c.scale, c.shift)]
        x, w, a, b = leaves
        y, _ = reference.depthwise_conv(x, w, a, b, True, stride=stride, dilation=c.dilation)
        (g, raw), (d_mean, d_m2, center) = maps(y.shape, dtype, 2), vectors(y.shape[1], 3)
        total = g.double()
        if source == "stats":  # g + d_mean / n + 2 d_m2 (y - mean)
            n = y.numel() / y.shape[1]
            total = total + vector_view(d_mean) / n
            total = total + 2 * vector_view(d_m2) * (raw.double() - vector_view(center))
        if source == "relu":
            total = total * (raw > 0)
        wants.append([*torch.autograd.grad(y, leaves, total), total.sum((0, 2, 3))])
        stats = (d_mean, d_m2, center) if source == "stats" else (None,) * 3
        args.append((g, None if source == "plain" else raw, *stats))
    got = [[channels_last(torch.empty(c.x.shape)).to(dtype) for c in cs]]
    got += [[torch.empty_like(c.weight) for c in cs]]
    got += [[torch.empty(c.x.shape[1]) for c in cs] for _ in range(3)]
    x, scale, shift, weight = (
        [getattr(c, k) for c in cs] for k in ("x", "scale", "shift", "weight")
    )
    columns = map(list, zip(*args, strict=True))
    lib("depthwise_grad", dtype, len(cs), sizes, *columns, x, scale, shift, True, weight, stride,
        *limits, *got)  # fmt: skip
    for i, want in enumerate(wants):
        for name, mine, right in zip(NAMES, got, want, strict=True):
            low = dtype if name in ("x", "weight") else torch.float32
            limit = max(tolerance(low), 1e-4)
            assert_near(
                mine[i], right, limit, f"gradient of {name} {cs[i].sizes()} stride {stride}"
            )


NAMES = ("x", "weight", "scale", "shift", "bias")
SOURCES = itertools.cycle(("plain", "stats", "relu"))
CASES = itertools.cycle(  # stride, dilation; one block for each slab and large tiles, or small ones
    zip((1, 2, 2, 1, 2, 1), (1, 1, 2, 2, 3, 3), ((1, 0), (4, 999)) * 3, strict=True)
)
KERNELS = itertools.cycle((3, 5, 7))


def check_depthwise(lib: Library, dtype: torch.dtype, shape: tuple) -> None:
    """Every kernel size, stride and dilation; small and large tiles; several tiles a block."""
    for stride, dilation, limits in itertools.islice(CASES, 3):
        cs = [candidate(shape, dtype, k, dilation) for k in (3, 5, 7)]
        forward(lib, dtype, cs, stride, limits)
        backward(lib, dtype, cs, stride, limits, next(SOURCES))
    alone = [candidate(shape, dtype, next(KERNELS), 1)]
    forward(lib, dtype, alone, 1, (1, 0))
    backward(lib, dtype, alone, 1, (1, 0), next(SOURCES))


def check_mixed(lib: Library, dtype: torch.dtype, shape: tuple) -> None:
    """Candidates of different channels and sizes; views, aligned and not; as many as can be."""
    n, c, h, w = shape
    cs = [
        candidate((n, c, h, w), dtype, 7, 1, offset=8),
        candidate((1, c + 1, w, h), dtype, 3, 2, offset=3),
        candidate((2, 3, 1, 1), dtype, 5, 3),
        *(candidate((1, 1, 2, 3), dtype, 3, 1) for _ in range(5)),
    ]
    stride = 1 + c % 2
    forward(lib, dtype, cs, stride, (4, 2))
    backward(lib, dtype, cs[:3], stride, (4, 2), "stats")


def check_extremes(lib: Library, dtype: torch.dtype, shape: tuple) -> None:
    """A mean far from zero; NaN and infinity reach what they touch; a ReLU of the output."""
    if shape[1] != 40:  # one shape is enough
        return
    (x,) = maps((1, 8, 9, 20), dtype)
    ones = torch.ones(8)
    far = Candidate(x, torch.randn(8, 1, 3, 3).to(dtype), ones, 0 * ones, 1000 * ones, 3, 1)
    if dtype == torch.float32:
        forward(lib, dtype, [far], 1, (2, 1))
    for bad in (float("nan"), float("inf")):
        broken = x.clone(memory_format=torch.preserve_format)
        broken[0, 1, 3, 3] = bad
        weight = torch.rand(8, 1, 3, 3).to(dtype) + 0.1
        out, count = torch.empty_like(broken), torch.zeros((), dtype=torch.float64)
        sizes = torch.tensor([[1, 8, 9, 20, 8, 3, 1]], dtype=torch.int32)
        lib("depthwise", dtype, 1, sizes, [broken], [None], [None], True, [weight], [None], True, 1,
            4, 1, [out], [count], [None], [None])  # fmt: skip
        want, _ = reference.depthwise_conv(broken, weight, None, None, True, None, True)
        assert torch.equal(out.isfinite(), want.isfinite())
        finite = want.isfinite()
        assert (~finite).sum() == 9
        assert_near(out[finite], want[finite], tolerance(dtype))


if __name__ == "__main__":
    run(check_depthwise, check_mixed, check_extremes)
