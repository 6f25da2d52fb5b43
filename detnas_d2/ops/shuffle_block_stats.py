"""ShuffleNetV2 blocks without gradients that normalise with the statistics of their batch
(recalibration)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from torch import Tensor

from detnas_d2.ops import reference
from detnas_d2.ops.extension import has_extension
from detnas_d2.ops.reference import BNStats
from detnas_d2.ops.registration import (
    by_reference,
    caller,
    channels_last,
    compiled,
    fake_stats,
    lower,
    operator,
    register_autocast,
    register_fake,
)
from detnas_d2.ops.shuffle_block import out_methods
from detnas_d2.ops.shuffle_concat import shuffle_concat
from detnas_d2.utils.compat import is_any_autocast_enabled


def shuffle_block_stats(
    left: Tensor,
    right: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    weights: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    eps: Sequence[float],
    kernel: int,
    stride: int,
    out_method: int,
    batches: int = 1,
) -> tuple[Tensor | tuple[Tensor, Tensor], list[BNStats]]:
    """The same block, every convolution followed by a BatchNorm with the statistics of its batch.

    Without gradients; :func:`shuffle_block_training` has them.

    Args:
        left, right: stride 1: the halves of the shuffled input; stride 2: the input, and None.
        scale, shift, relu: what is pending on the input at stride 2, as for
            :func:`pointwise_conv`; nothing at stride 1.
        weights, kernel: see :func:`~detnas_d2.ops.shuffle_block`.
        gammas, betas, eps: of the BatchNorms.
        out_method: 0: the output is concatenated; 1, 2: shuffled this way and split, as a
            following block of stride 1 wants it.
        batches: of how many batches the N images are, each normalised by itself: scale, shift and
            statistics are (batches, C) where there are several, see
            :func:`detnas_d2.ops.bn_stats_fold`.

    Returns:
        the output (N, C', H', W') channels_last or its halves, and the :class:`BNStats` of every
        convolution's output, in the order of the weights.

    Raises:
        NotImplementedError, RuntimeError: as :func:`~detnas_d2.ops.shuffle_block`.
    """
    args = (left, right, scale, shift, relu, weights, gammas, betas, eps, kernel, stride)
    if not compiled(left):
        of = reference.shuffle_block_stats
        return by_reference("shuffle_block_stats", of, *args, out_method, batches)
    a, b, *stats = _shuffle_block_stats(*args, out_method, batches)
    return (a, b) if out_method else a, list(map(BNStats, *stats))


class StatsBlock(NamedTuple):
    """What :func:`shuffle_blocks_stats` takes of a block, see :func:`shuffle_block_stats`.

    Attributes:
        packed: on the CPU, what :func:`pack_shuffle_block` made of the weights, or empty.
        method: channel shuffle at stride 1, 1 or 2.
    """

    weights: Sequence[Tensor]
    packed: Sequence[Tensor]
    gammas: Sequence[Tensor]
    betas: Sequence[Tensor]
    eps: Sequence[float]
    kernel: int
    stride: int
    method: int


def shuffle_blocks_stats(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    blocks: Sequence[StatsBlock],
    ends: Sequence[int],
    batches: int = 1,
) -> tuple[list[Tensor], list[BNStats]]:
    """Several blocks one after the other by one operator, to the bit as by
    :func:`shuffle_block_stats`.

    Args:
        x: (N, C, H, W).
        scale, shift, relu: what is pending on it.
        blocks: one at least; packed are the weights of all of them, or of none.
        ends: numbers of blocks after which the output is wanted, ascending; the last is all.
        batches: see :func:`shuffle_block_stats`.

    Returns:
        the output after so many blocks, for each of ``ends``, and the statistics of every
        convolution's output, block by block.

    Raises:
        NotImplementedError, RuntimeError: as :func:`~detnas_d2.ops.shuffle_block`.
    """
    if not compiled(x) or is_any_autocast_enabled():
        return one_by_one(x, scale, shift, relu, blocks, ends, batches)
    weights, packed, gammas, betas, eps, kernels, strides, methods = zip(*blocks, strict=True)
    lists = (list(chain.from_iterable(ts)) for ts in (weights, packed, gammas, betas, eps))
    outputs, *stats = _shuffle_blocks_stats(
        x, scale, shift, relu, *lists, kernels, strides, methods, ends, batches
    )
    return outputs, list(map(BNStats, *stats))


def one_by_one(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    blocks: Sequence[StatsBlock],
    ends: Sequence[int],
    batches: int = 1,
) -> tuple[list[Tensor], list[BNStats]]:
    """:func:`shuffle_blocks_stats` by a call for every block."""
    outputs, all_stats = [], []
    out_of = out_methods([b.stride for b in blocks], [b.method for b in blocks], ends)
    left, right, pending = x, None, (scale, shift, relu)
    for number, (block, out_method) in enumerate(zip(blocks, out_of, strict=True), 1):
        if block.stride == 1 and right is None:
            left, right = _halves(left, *pending, block.method, batches)
            pending = (None, None, False)
        out, stats = shuffle_block_stats(
            left, right, *pending, block.weights, block.gammas, block.betas, block.eps,
            block.kernel, block.stride, out_method, batches,
        )  # fmt: skip
        all_stats += stats
        left, right = (out, None) if isinstance(out, Tensor) else out
        pending = (None, None, False)
        if number in ends:
            outputs.append(left)
    return outputs, all_stats


def _halves(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, relu: bool, method: int, batches: int
) -> tuple[Tensor, Tensor]:
    """What is left of a map, shuffled and split, when nothing is pending on it any more."""
    half = x.shape[1] // 2

    def part(v: Tensor | None, of: slice) -> Tensor | None:
        return None if v is None else v[..., of]

    first, second = slice(half), slice(half, None)
    halves = shuffle_concat(
        x[:, first], x[:, second], part(scale, first), part(shift, first), part(scale, second),
        part(shift, second), relu, relu, method, True, batches,
    )  # fmt: skip
    assert isinstance(halves, tuple)
    return halves


def _fake(
    left, right, scale, shift, relu, weights, gammas, betas, eps, kernel, stride, out_method,
    batches=1,
):  # fmt: skip
    n, c, h, w = left.shape
    stats = [fake_stats(left, True, weight.shape[0], batches) for weight in weights]
    channels = c + weights[5 if kernel == 0 else 2].shape[0]
    size = (-(-h // stride), -(-w // stride))
    if out_method:
        half = channels // 2
        outs = [channels_last(left, n, k, *size) for k in (half, channels - half)]
    else:
        outs = [channels_last(left, n, channels, *size), left.new_empty(0)]
    return *outs, *(list(column) for column in zip(*stats, strict=True))


def _blocks_fake(
    x, scale, shift, relu, weights, packed, gammas, betas, eps, kernels, strides, methods, ends,
    batches=1,
):  # fmt: skip
    n, c, h, w = x.shape
    stats = [fake_stats(x, True, weight.shape[0], batches) for weight in weights]
    outputs, first = [], 0
    for number, (kernel, stride) in enumerate(zip(kernels, strides, strict=True), 1):
        main = 6 if kernel == 0 else 3
        made = weights[first + main - 1].shape[0]
        first += main + 2 * (stride == 2)
        c = made + (c // 2 if stride == 1 else weights[first - 1].shape[0])
        h, w = -(-h // stride), -(-w // stride)
        if number in ends:
            outputs.append(channels_last(x, n, c, h, w))
    return outputs, *(list(column) for column in zip(*stats, strict=True))


def _lower(dtype, left, right, scale, shift, relu, weights, *rest):
    if right is None:
        left = lower(left, dtype)
    else:  # the left half is passed on as it is
        right = lower(right, dtype)
    return left, right, scale, shift, relu, [lower(w, dtype) for w in weights], *rest


register_autocast("shuffle_block_stats", _lower)
if has_extension():
    register_fake("shuffle_block_stats", _fake)
    register_fake("shuffle_blocks_stats", _blocks_fake)
    _shuffle_block_stats = caller("shuffle_block_stats")
    _shuffle_blocks_stats = operator("shuffle_blocks_stats")
