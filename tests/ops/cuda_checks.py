"""The operators on a GPU against their references in float64 on the CPU; see benchmarks/gpu.sh.

Usage: cuda_checks.py [--small] [--device cpu]. Needs neither pytest nor Detectron2. On the CPU it
checks itself: everything but streams and graphs runs.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from detnas_d2 import ops
from detnas_d2.ops import BNStats, reference
from tests.ops import batches, chains, cuda_contexts
from tests.ops.compare import assert_near, block, channels_last, stored_as, tensors

TOLERANCE = {torch.float32: 5e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
EMULATED = False  # tensors on the CPU meet the operators for CUDA
LAYOUTS = ("channels_last", "contiguous", "half", "every second", "unaligned")
SMALL = [(1, 5, 7, 9), (2, 32, 9, 11)]
LARGE = [(1, 1, 1, 1), (2, 64, 56, 40), (1, 160, 20, 30), (1, 1728, 5, 5)]


@dataclass(frozen=True)
class Map:
    """Marks an argument that comes in every layout and in the dtype under test."""

    tensor: Tensor


@dataclass(frozen=True)
class Weight:
    """Marks an argument in the dtype under test."""

    tensor: Tensor


@dataclass(frozen=True)
class Setup:
    device: str
    dtype: torch.dtype
    layout: str = "channels_last"

    def place(self, x: Tensor) -> Tensor:
        """``x`` on the device, as it may lie in memory."""
        n, c, h, w = x.shape
        x = x.to(self.device, self.dtype)
        if self.layout == "contiguous":
            return x.contiguous()
        if self.layout in ("half", "every second"):
            wide = channels_last(x.new_zeros(n, 2 * c, h, w))
            view = wide[:, c:] if self.layout == "half" else wide[:, 1::2]
        elif self.layout == "unaligned":
            view = x.new_zeros(x.numel() + 1)[1:].view(n, h, w, c).permute(0, 3, 1, 2)
        else:
            return channels_last(x)
        return view.copy_(x)

    def leaves(self, value: object, fast: bool) -> object:
        """Arguments as leaves: for the operator, or in float64 on the CPU for the reference."""
        if isinstance(value, (Map, Weight)):
            t = value.tensor.to(self.dtype)  # both see the rounded values
            if not fast:
                t = t.double()
            else:
                t = self.place(t) if isinstance(value, Map) else t.to(self.device)
        elif isinstance(value, Tensor):
            t = value.to(self.device) if fast else value.double()
        elif isinstance(value, (list, tuple)):
            return [self.leaves(v, fast) for v in value]
        else:
            return value
        return t.detach().requires_grad_()


def check(
    what: str,
    op: Callable,
    expected_of: Callable,
    args: tuple,
    setup: Setup,
    gradients: bool = True,
) -> None:
    """Outputs and gradients of all tensors among ``args``; both see the same rounded values."""
    fast, wide = setup.leaves(args, True), setup.leaves(args, False)
    with torch.set_grad_enabled(gradients), stored_as(setup.dtype):
        expected, actual = tensors(expected_of(*wide)), tensors(op(*fast))
    pairs = list(zip(actual, expected, strict=True))
    if gradients:
        outputs = [(a, e) for a, e in pairs if a.requires_grad]
        size = 1 / 16 if setup.dtype == torch.float16 else 1  # of sums over pixels none overflows
        grads = [size * torch.randn_like(e) for _, e in outputs]
        cast = [g.to(a.device, a.dtype) for g, (a, _) in zip(grads, outputs, strict=True)]
        grads = [g.to(e) for g, (_, e) in zip(cast, outputs, strict=True)]
        want = torch.autograd.grad([e for _, e in outputs], tensors(wide), grads)
        got = torch.autograd.grad([a for a, _ in outputs], tensors(fast), cast)
        pairs += zip(got, want, strict=True)
    for i, (a, e) in enumerate(pairs):
        where = f"{what}, {setup}, result {i}"
        assert_near(a.detach().cpu(), e.detach(), TOLERANCE[setup.dtype], where)


def named(name: str, args: tuple, setup: Setup, gradients: bool = True) -> None:
    check(name, getattr(ops, name), getattr(reference, name), args, setup, gradients)


def fold(module: object) -> Callable:
    """bn_fold of a module, for statistics of 30 values."""

    def run(mean: Tensor, m2: Tensor, gamma: Tensor | None, beta: Tensor | None) -> object:
        count = torch.tensor(30.0, dtype=torch.float64, device=mean.device)
        return module.bn_fold(BNStats(count, mean, m2), gamma, beta, 1e-5)

    return run


def check_statistics(shape: tuple, setup: Setup) -> None:
    n, c, h, w = shape
    a, b = torch.randn(2, c)
    named("bn_stats", (Map(torch.randn(shape)), a, b, True), setup)
    named("bn_stats", (Map(torch.randn(shape) + 3), None, None, False), setup)
    sizes = [shape, (1, c, 1, 1), (n, c, 0, w), (1, c, 2 * h, w)] * 3  # more than a launch takes
    for count in (2, len(sizes)):
        maps = [Map(torch.randn(s)) for s in sizes[:count]]
        named("bn_stats", (maps, a, b, True), setup)
    m2 = torch.rand(c) + 0.5
    for gamma, beta in ((a, b), (None, None)):
        check("bn_fold", fold(ops), fold(reference), (torch.randn(c), m2, gamma, beta), setup)


def check_extremes(shape: tuple, setup: Setup) -> None:
    """An outlier where kernels begin, and values that are none, which stay in their channel."""
    n, c, h, w = shape
    x = 1 + torch.randn(shape) / 64
    x[0, :, 0, 0] = 1000
    named("bn_stats", (Map(x), None, None, False), setup, False)
    for bad in (torch.inf, -torch.inf, torch.nan):
        x = torch.randn(shape)
        x[n - 1, c - 1, h // 2, w // 2] = bad
        args = (Map(x), None, None, False)
        with torch.no_grad():
            _, mean, m2 = ops.bn_stats(*setup.leaves(args, True))
            _, expected, _ = reference.bn_stats(*setup.leaves(args, False))
        assert torch.equal(m2.isfinite().cpu(), torch.arange(c) < c - 1), f"m2 of {bad}, {setup}"
        assert_near(mean.cpu()[:-1], expected[:-1], TOLERANCE[setup.dtype], f"mean, {setup}")
        last = mean[-1:].double().cpu()
        torch.testing.assert_close(last, expected[-1:], equal_nan=True, msg=f"{bad}, {setup}")


def check_convolutions(shape: tuple, setup: Setup) -> None:
    n, c, h, w = shape
    x, (a, b) = Map(torch.randn(shape)), torch.randn(2, c)
    weight = Weight(torch.randn(24, c, 1, 1) / c)
    named("pointwise_conv", (x, weight, a, b, True, None, False, True), setup)
    named("pointwise_conv", (x, weight, a, b, True, torch.randn(24)), setup)
    named("pointwise_conv", (x, weight, None, None, False, torch.randn(24), True), setup)
    grouped = Weight(torch.randn(24, c, 1, 1) / c)
    pair, ab = Map(torch.randn(n, 2 * c, h, w)), torch.randn(2, 2 * c)
    named("pointwise_conv", (pair, grouped, *ab, True, None, False, True, 2), setup)
    taps = {k: Weight(torch.randn(c, 1, k, k) / k) for k in (3, 5, 7)}
    for k, stride, dilation in itertools.product(taps, (1, 2), (1, 2, 3)):
        rest = (a, b, True, None, False, True, stride, dilation)
        named("depthwise_conv", (x, taps[k], *rest), setup)
    named("depthwise_conv", (x, taps[3], None, None, False, torch.randn(c), True), setup)
    for count, stride in ((3, 1), (3, 2), (9, 1)):  # 9: more than one launch takes
        wide = Map(torch.randn(n, c + 8, h, w))  # of other channels than the rest
        more = (Weight(torch.randn(c + 8, 1, 3, 3)), torch.randn(c + 8), torch.randn(c + 8))
        entries = [(x, taps[(3, 5, 7)[i % 3]], a, b, 1 + i % 3) for i in range(1, count)]
        columns = zip((wide, *more, 2), *entries, strict=True)
        *lists, dilation = [list(column) for column in columns]
        args = (*lists, True, True, stride, dilation)
        check("mixed_depthwise", ops.mixed_depthwise, mixed_depthwise, args, setup)


def check_folded(shape: tuple, setup: Setup) -> None:
    """A map pending without ReLU moves into the weights: errors within what is stated for it."""
    form = torch.finfo(setup.dtype)
    unit = form.eps / 2 if form.bits == 16 else 2.0**-10  # TF32 rounds both operands
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        for mean in (0, 3, 30):
            with torch.random.fork_rng(devices=[]):
                x, weight = torch.randn(shape) + mean, torch.randn(72, shape[1], 1, 1) / shape[1]
                (a, b), bias = torch.randn(2, shape[1]), torch.randn(72)
            args = (Map(x), Weight(weight), a, b, False, bias)
            y, wide = setup.leaves(args, True), setup.leaves(args, False)
            with torch.no_grad():
                y = ops.pointwise_conv(*y)[0].cpu().double()
                expected = reference.pointwise_conv(*wide)[0]
                magnitudes = [t.abs() for t in wide if isinstance(t, Tensor)]
                x, weight, a, b, bias = magnitudes
                size = reference.pointwise_conv(x, weight, a, torch.zeros_like(b))[0]
                all_terms = reference.pointwise_conv(x, weight, a, b, False, bias)[0]
            bound = unit * size + (shape[1] + 2) * 2.0**-24 * all_terms
            # And by the result's own rounding; float16 has numbers of fewer bits.
            bound = 1.01 * bound + form.eps / 2 * expected.abs()
            bound += form.tiny * form.eps * (1 + x.sum(1, keepdim=True))
            error = ((y - expected).abs() / bound).max().item()
            assert error <= 1, f"mean {mean}, {setup}: {error:.3g} of the bound"
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def check_dense_convolutions(shape: tuple, setup: Setup) -> None:
    with torch.random.fork_rng(devices=[]):  # the other checks draw what they drew before
        x, weight = Map(torch.randn(shape)), Weight(torch.randn(24, shape[1], 3, 3) / shape[1])
        for options in ((torch.randn(24), True, False), (None, False, True)):
            named("conv3x3", (x, weight, *options), setup, False)


def check_norms(shape: tuple, setup: Setup) -> None:
    """Operators with the BatchNorm that follows them."""
    n, c, h, w = shape
    if n * h * w < 16:  # gradients through the deviation of few values are large
        return
    x, (a, b) = Map(torch.randn(shape)), torch.randn(2, c)
    named("bn_stats_fold", (x, a, b, True, torch.rand(c) + 0.5, torch.randn(c), 0.1), setup)
    named("bn_stats_fold", (x, None, None, False, None, None, 0.1), setup)
    out, groups = 72, 2  # of more than one tile of columns
    pair, ab = Map(torch.randn(n, 2 * c, h, w)), torch.randn(2, 2 * c)
    for maps, affine, weight, g in (
        (x, (a, b), torch.randn(out, c, 1, 1) / c, 1),
        (pair, ab, torch.randn(2 * out, c, 1, 1) / c, groups),
    ):
        norm = (torch.rand(len(weight)) + 0.5, torch.randn(len(weight)), 0.1)
        args = (maps, Weight(weight), *affine, True, None, g, *norm)
        named("pointwise_conv_bn", args, setup)
    norm = (torch.rand(c) + 0.5, torch.randn(c), 0.1)
    for k, stride, dilation in ((3, 1, 1), (5, 2, 1), (7, 1, 3)):
        taps = Weight(torch.randn(c, 1, k, k) / k)
        args = (x, taps, a, b, True, None, stride, dilation, *norm)
        named("depthwise_conv_bn", args, setup)


def mixed_depthwise(x, weight, scale, shift, relu, want_stats, stride, dilation):
    """The reference of ops.mixed_depthwise."""
    results = [
        reference.depthwise_conv(*tensors, relu, None, False, want_stats, stride, d)
        for *tensors, d in zip(x, weight, scale, shift, dilation, strict=True)
    ]
    return [y for y, _ in results], [stats for _, stats in results]


def check_batches(shape: tuple, setup: Setup) -> None:
    """Several batches in one launch are one after the other, to the bit, with and without TF32."""
    n, c, h, w = shape
    shape = (n, c + c % 2, h, w)
    allowed = torch.backends.cudnn.allow_tf32
    try:
        for tf32, count in ((False, 2), (True, 3)):
            torch.backends.cudnn.allow_tf32 = tf32
            with torch.random.fork_rng(devices=[]):
                batches.check((count * n, *shape[1:]), count, setup.dtype, setup.place)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def check_shuffles(shape: tuple, setup: Setup) -> None:
    n, c, h, w = shape
    for c_right in (c, c + 2, c + 16):
        left, right = Map(torch.randn(shape)), Map(torch.randn(n, c_right, h, w))
        (a, b), (d, e) = torch.randn(2, c), torch.randn(2, c_right)
        for method, split in itertools.product((0, 1, 2), (False, True)):
            both = (a, b, d, e, True, False, method, split)
            named("shuffle_concat", (left, right, *both), setup)
            one = (None, None, d, e, False, True, method, split)
            named("shuffle_concat", (left, right, *one), setup)
        plain = (None, None, None, None, True, False, 2, True)
        named("shuffle_concat", (left, right, *plain), setup)


def check_mixed_sums(shape: tuple, setup: Setup) -> None:
    c = shape[1]
    for count in (1, 3, 5, 8, 9, 17, 32):  # a launch takes 8
        maps = [Map(torch.randn(shape)) for _ in range(count)]
        scale, shift = ([torch.randn(c) for _ in range(count)] for _ in range(2))
        residual = Map(torch.randn(shape)) if count != 3 else None
        named("mixed_sum", (maps, scale, shift, torch.randn(count), residual), setup)


def check_blocks(shape: tuple, setup: Setup) -> None:
    n, c, h, w = shape
    c += c % 2
    for kernel, stride in itertools.product((0, 3, 5, 7), (1, 2)):
        weights, biases = block(c, kernel, stride)
        gammas = [torch.rand(len(b)) + 0.5 for b in biases]
        weights = [Weight(t) for t in weights]
        x = Map(torch.randn(n, c, h, w))
        for method in (1, 2):
            named("shuffle_block", (x, weights, biases, kernel, stride, method), setup, False)
        if n * h * w < 64 or setup.dtype != torch.float32:  # statistics of few or rounded values
            continue
        halves = [Map(torch.randn(n, c // 2, h, w)) for _ in range(2)] if stride == 1 else [x, None]
        eps = [1e-3] * len(weights)
        args = (*halves, None, None, False, weights, gammas, biases, eps, kernel, stride, 2)
        named("shuffle_block_stats", args, setup, False)


def check_chains(setup: Setup) -> None:
    """Blocks between halves, with products of the library and on tensor cores."""
    allowed = torch.backends.cudnn.allow_tf32
    try:
        for tf32 in (False, True) if setup.dtype == torch.float32 else (True,):
            torch.backends.cudnn.allow_tf32 = tf32
            for n, c, h, w in SMALL:
                x = setup.place(torch.randn(n, c + c % 2, h, w))
                for kernel, stride, more in itertools.product((0, 5), (1, 2), (0, 16)):
                    chains.check(x, kernel, stride, more)
                chains.check_many(x)
        for shape in chains.WIDE:
            chains.check(setup.place(torch.randn(shape)), 3, 1)
        if setup.device == "cpu" and setup.dtype != torch.float32 and not EMULATED:
            return  # the CPU's kernels round no map between two layers
        for (shape, stride), kernel in itertools.product(chains.SEPARABLE, (3, 5, 7)):
            chains.check_alone(setup.place(torch.randn(shape)), kernel, stride)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


CHECKS = (
    check_statistics,
    check_extremes,
    check_convolutions,
    check_folded,
    check_norms,
    check_shuffles,
    check_mixed_sums,
    check_blocks,
    check_dense_convolutions,
    check_batches,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="two shapes, as for a sanitizer")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    args = parser.parse_args()
    if args.device == "cuda" and not ops.build_info().endswith("CUDA yes"):
        raise SystemExit(f"the library was built without CUDA: {ops.build_info()}")
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    failures = 0
    for dtype, function in itertools.product(TOLERANCE, CHECKS):
        cases = []
        for i, shape in enumerate(SMALL if args.small else SMALL + LARGE):
            # Every layout of small shapes; convolutions and blocks convert what they cannot read.
            heavy = (check_convolutions, check_folded, check_norms, check_blocks, check_batches)
            light = function not in heavy
            layouts = LAYOUTS if i < 2 and light and not args.small else LAYOUTS[: 1 + 2 * (i == 1)]
            cases += [partial(function, shape, Setup(args.device, dtype, k)) for k in layouts]
        failures += cuda_contexts.report(f"{function.__name__} {dtype}", cases)
    cases = [partial(check_chains, Setup(args.device, dtype)) for dtype in TOLERANCE]
    failures += cuda_contexts.report("check_chains", cases)
    failures += cuda_contexts.run(args.device, args.small)
    if failures:
        raise SystemExit(f"{failures} checks failed")


if __name__ == "__main__":
    main()
