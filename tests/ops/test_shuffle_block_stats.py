"""shuffle_block_stats."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from detnas_d2 import ops
from detnas_d2.ops import reference
from tests.ops.compare import (
    CAPABILITIES,
    TOLERANCE,
    capability,
    channels_last,
    check_values,
    layouts,
    tensors,
)
from tests.ops.test_shuffle import block


def arguments(
    shape: tuple, kernel: int, stride: int, out_method: int, pending: bool = False
) -> tuple:
    c = shape[1]
    weights, betas = block(c, kernel, stride)
    gammas = [torch.rand(len(b)) + 0.5 for b in betas]
    x = torch.randn(shape)
    affine = (torch.rand(c), torch.randn(c), True) if pending else (None, None, False)
    halves = (x, None) if stride == 2 else (x[:, : c // 2], x[:, c // 2 :])
    eps = [1e-5 * (i + 1) for i in range(len(weights))]
    return *halves, *affine, weights, gammas, betas, eps, kernel, stride, out_method


def check(args: tuple, tolerance: float) -> None:
    check_values(ops.shuffle_block_stats, reference.shuffle_block_stats, args, tolerance)


@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize("kernel", [3, 5, 7, 0])
@pytest.mark.parametrize("stride", [1, 2])
def test_agrees_with_the_reference(name: str, kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    with capability(name):
        try:
            # The last has so many pixels that affine maps move into the matrices.
            for shape, n in (((2, 2, 3, 3), 1), ((2, 10, 9, 7), 2), ((1, 36, 15, 21), 1)):
                torch.set_num_threads(n)
                for out_method in (0, 1, 2):
                    args = arguments(shape, kernel, stride, out_method, pending=stride == 2)
                    check((channels_last(args[0]), *args[1:]), 1e-4)
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize("stride", [1, 2])
def test_other_dtypes_nan_empty_and_opcheck(stride: int) -> None:
    torch.manual_seed(0)
    left, right, *middle, weights, gammas, betas, eps, kernel, _, method = arguments(
        (2, 8, 6, 5), 5, stride, 2
    )
    rest = (gammas, betas, eps, kernel, stride, method)

    def run(dtype: torch.dtype) -> tuple:
        halves = [None if t is None else t.to(dtype) for t in (left, right)]
        return *halves, *middle, [w.to(dtype) for w in weights], *rest

    check(run(torch.float64), TOLERANCE[torch.float64])
    (a, b), stats = ops.shuffle_block_stats(*run(torch.bfloat16))
    (c, d), expected = reference.shuffle_block_stats(*run(torch.bfloat16))
    assert a.dtype == b.dtype == torch.bfloat16 and stats[0].mean.dtype == torch.float32
    for x, y in ((a, c), (b, d)):  # rounded at other places, so not closer than that
        assert (x.float() - y.float()).abs().max() < 0.1
    for s, e in zip(stats, expected, strict=True):
        assert s.count == e.count and (s.mean - e.mean).abs().max() < 0.05
    opcheck(torch.ops.detnas_d2.shuffle_block_stats, run(torch.float32))
    poisoned = left.clone()
    poisoned[0, 1, 2, 3] = torch.nan
    args = run(torch.float32)
    check((poisoned, *args[1:]), 1e-4)
    empty = [None if t is None else t[:0] for t in (left, right)]
    (a, b), stats = ops.shuffle_block_stats(*empty, *args[2:])
    assert a.shape[0] == b.shape[0] == 0 and all(s.count == 0 for s in stats)


def one_by_one(
    left, right, scale, shift, relu, weights, gammas, betas, eps, kernel, stride, method, batches=1
):  # fmt: skip
    """The operators that a block is made of, to the bit."""
    stats: list = []

    def run(x: tuple, layers: slice, stride: int) -> tuple:
        norms = zip(gammas[layers], betas[layers], eps[layers], strict=True)
        for w, norm in zip(weights[layers], norms, strict=True):
            if w.shape[2] > 1:
                y, s, *affine = ops.depthwise_conv_bn(
                    x[0], w, *x[1:], None, stride, 1, *norm, batches
                )
                x, stride = (y, *affine, False), 1
            else:
                y, s, *affine = ops.pointwise_conv_bn(x[0], w, *x[1:], None, 1, *norm, batches)
                x = (y, *affine, True)
            stats.append(s)
        return x

    main = slice(6 if kernel == 0 else 3)
    passing = (left, scale, shift, relu)
    made = run(passing if right is None else (right, None, None, False), main, stride)
    if right is None:
        passing = run(passing, slice(main.stop, None), stride)
    vectors = *passing[1:3], *made[1:3], passing[3], made[3]
    split = method != 0
    return ops.shuffle_concat(passing[0], made[0], *vectors, method, split, batches), stats


def is_one_by_one(args: tuple, batches: int) -> None:
    with torch.no_grad():
        found = tensors(ops.shuffle_block_stats(*args, batches))
        expected = tensors(one_by_one(*args, batches))
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape, i
        assert torch.equal(a.isnan(), b.isnan()), i
        assert torch.equal(a.nan_to_num(), b.nan_to_num()), i


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", [0, 3, 7])
def test_it_is_its_operators_one_by_one(kernel: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    shapes = ((2, 6, 5, 4), (4, 36, 9, 11), (2, 34, 23, 31), (0, 6, 5, 4), (2, 4, 1, 1))
    try:
        for case, (shape, stride) in enumerate(itertools.product(shapes, (1, 2))):
            torch.set_num_threads(1 + case % 3)
            left, right, *pending, weights, gammas, betas, eps, _, _, _ = arguments(
                shape, kernel, stride, 0, stride == 2
            )
            layout = case % 5
            half = (shape[0], shape[1] // 2, *shape[2:])
            left = layouts(half if stride == 1 else shape, dtype)[layout]
            right = layouts(half, dtype)[(layout + 3) % 5] if stride == 1 else None
            gammas = [g.double() if case % 2 else g[:, None].expand(-1, 2)[:, 1] for g in gammas]
            for method, batches, relu in ((case % 3, 1, case % 2 == 0), ((case + 1) % 3, 2, True)):
                if stride == 1:
                    affine: tuple[Tensor | None, ...] = (None, None)
                elif case % 4 == 3:
                    affine = (None, None)
                else:
                    affine = tuple(v if batches == 1 else torch.stack([v, -v]) for v in pending[:2])
                args = (left, right, *affine, relu and stride == 2, [w.to(dtype) for w in weights])
                is_one_by_one((*args, gammas, betas, eps, kernel, stride, method), batches)
    finally:
        torch.set_num_threads(threads)


def test_under_autocast_it_is_the_chain_of_its_operators() -> None:
    torch.manual_seed(0)
    left, right, *_, weights, gammas, betas, eps, kernel, stride, _ = arguments(
        (1, 8, 6, 5), 3, 1, 0
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        args = (left, right, None, None, False, weights, gammas, betas, eps, kernel, stride, 0)
        y, stats = ops.shuffle_block_stats(*args)
        z, s0 = ops.pointwise_conv(right, weights[0], want_stats=True)
        z, s1 = ops.depthwise_conv(
            z, weights[1], *ops.bn_fold(s0, gammas[0], betas[0], eps[0]), True, want_stats=True
        )
        affine = ops.bn_fold(s1, gammas[1], betas[1], eps[1])
        z, s2 = ops.pointwise_conv(z, weights[2], *affine, want_stats=True)
        affine = ops.bn_fold(s2, gammas[2], betas[2], eps[2])
        expected = ops.shuffle_concat(left, z, None, None, *affine, False, True)
    assert y.dtype == expected.dtype == torch.float32
    assert torch.equal(y, expected)
    assert torch.equal(stats[2].m2, s2.m2)


def test_errors() -> None:
    good = list(arguments((1, 8, 4, 4), 3, 1, 0))
    for index, value, message in (
        (9, 4, "kernel: expected 3, 5, 7 or 0"),
        (10, 3, "stride: expected 1 or 2"),
        (11, 3, "out_method: expected 0, 1 or 2"),
        (1, None, "right: expected at stride 1"),
        (4, True, "nothing pending on left at stride 1"),
        (5, good[5][:2], "weights, gammas, betas, eps: expected 3 each"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.shuffle_block_stats(*good[:index], value, *good[index + 1 :])


@pytest.mark.parametrize("write", ["data", "storage", "version", "swap"])
def test_weights_are_read_at_every_call(write: str) -> None:
    torch.manual_seed(0)
    args = arguments((1, 64, 5, 6), 3, 1, 0)
    x, biases = torch.randn(1, 64, 5, 6), [torch.randn(32) for _ in range(3)]
    weights = args[5]
    for index in (0, 1):
        for _ in range(3):
            check(args, 1e-4)
            check_values(
                ops.shuffle_block, reference.shuffle_block, (x, weights, biases, 3, 1, 2), 1e-4
            )
        w = weights[index]
        if write == "data":
            w.data[1, 0] += 1
        elif write == "storage":
            w.detach().numpy()[2] += 1
        elif write == "version":
            w.mul_(2)
        else:
            torch.utils.swap_tensors(w, torch.randn_like(w))
        check(args, 1e-4)
        check_values(
            ops.shuffle_block, reference.shuffle_block, (x, weights, biases, 3, 1, 2), 1e-4
        )
