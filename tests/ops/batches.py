"""Operators on several batches in one call, against calls of their own: equal to the bit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detnas_d2 import ops
from detnas_d2.ops import reference
from tests.ops.compare import block, tensors

Case = tuple[list[Tensor | None], list[Tensor | None], Callable]
"""Maps, vectors of each batch, and a function of them and of the number of batches."""


def norm(channels: int) -> tuple[Tensor, Tensor, float]:
    return torch.rand(channels) + 0.5, torch.randn(channels), 1e-3


def cases(shape: tuple, batches: int, dtype: torch.dtype, place: Callable) -> dict[str, Case]:
    """Of every operator that takes several batches.

    Args:
        shape: of all batches together; an even number of channels.
        place: a map as it is to lie in memory, on the device of everything.
    """
    n, c, h, w = shape
    x, y = (place(torch.randn(shape).to(dtype)) for _ in range(2))

    def moved(*values: Tensor) -> list[Tensor]:
        return [t.to(x.device) for t in values]

    def pending(channels: int = c) -> list[Tensor]:
        return [
            t.squeeze(0) if batches == 1 else t for t in moved(*torch.randn(2, batches, channels))
        ]

    def weight(*size: int) -> Tensor:
        return moved((torch.randn(size) / size[1]).to(dtype))[0]

    def own(channels: int) -> tuple:
        gamma, beta, eps = norm(channels)
        return *moved(gamma, beta), eps

    square, grouped, taps = weight(72, c, 1, 1), weight(8, c // 2, 1, 1), weight(c, 1, 5, 5)
    of_c, of_72, of_8 = own(c), own(72), own(8)
    stats, concat = ops.bn_stats_fold, ops.shuffle_concat
    found: dict[str, Case] = {
        "bn_stats_fold": ([x], pending(), lambda x, a, b, k: stats(x, a, b, True, *of_c, k)),
        "bn_stats_fold, nothing pending": (
            [x], [None, None], lambda x, a, b, k: stats(x, a, b, False, None, None, 0.1, k)
        ),
        "pointwise_conv_bn": (
            [x], pending(),
            lambda x, a, b, k: ops.pointwise_conv_bn(x, square, a, b, True, None, 1, *of_72, k),
        ),
        "pointwise_conv_bn in groups": (
            [x], [None, None],
            lambda x, a, b, k: ops.pointwise_conv_bn(x, grouped, a, b, False, of_8[1], 2, *of_8, k),
        ),
        "shuffle_concat": (
            [x, y], [*pending(), *pending()],
            lambda x, y, a, b, d, e, k: concat(x, y, a, b, d, e, True, False, 2, True, k),
        ),
        "shuffle_concat, whole": (
            [x, y], [None, None, *pending()],
            lambda x, y, a, b, d, e, k: concat(x, y, a, b, d, e, False, True, 1, False, k),
        ),
    }  # fmt: skip
    for stride, dilation in ((1, 1), (2, 1), (1, 3)):
        found[f"depthwise_conv_bn, {stride}, {dilation}"] = (
            [x], pending(),
            lambda x, a, b, k, s=stride, d=dilation: ops.depthwise_conv_bn(
                x, taps, a, b, True, None, s, d, *of_c, k
            ),
        )  # fmt: skip
    for kernel, stride in ((3, 1), (0, 1), (5, 2)):
        weights = [weight(*t.shape) for t in block(2 * c if stride == 1 else c, kernel, stride)[0]]
        gammas, betas, _ = zip(*(own(len(t)) for t in weights), strict=True)
        rest = (weights, gammas, betas, [1e-3] * len(weights), kernel, stride, 2)
        affine: list[Tensor | None] = pending() if stride == 2 else [None, None]
        found[f"shuffle_block_stats of {kernel}, {stride}"] = (
            [x, y if stride == 1 else None], affine,
            lambda x, y, a, b, k, rest=rest: ops.shuffle_block_stats(
                x, y, a, b, a is not None, *rest, k
            ),
        )  # fmt: skip
    return found


@torch.no_grad()
def check(shape: tuple, batches: int, dtype: torch.dtype, place: Callable) -> None:
    """Every operator on all batches is, to the bit, itself on one after the other."""
    for name, (maps, vectors, op) in cases(shape, batches, dtype, place).items():
        found = tensors(op(*maps, *vectors, batches))
        expected = tensors(
            reference.by_batch(batches, maps, vectors, lambda *args, op=op: op(*args, 1))
        )
        assert len(found) == len(expected)
        for i, (a, e) in enumerate(zip(found, expected, strict=True)):
            what = f"{name}, {shape} as {batches} batches, {dtype}, result {i}"
            assert a.shape == e.shape and a.dtype == e.dtype, f"{what}: {a.shape}, {a.dtype}"
            assert torch.equal(a.nan_to_num(), e.nan_to_num()), f"{what} differs"
            if a.dim() == 4 and a.numel():
                assert a.is_contiguous(memory_format=torch.channels_last), f"{what}: layout"
