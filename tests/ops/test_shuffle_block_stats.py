"""shuffle_block_stats."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from detnas_d2 import ops
from detnas_d2.ops import reference
from tests.ops.compare import CAPABILITIES, TOLERANCE, capability, channels_last, check_values
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
