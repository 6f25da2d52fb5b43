"""ShuffleNetV2 blocks in evaluation: BatchNorms folded into weights and biases, no gradients."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from torch import Tensor

from detnas_d2.ops import reference
from detnas_d2.ops.extension import has_extension
from detnas_d2.ops.registration import (
    absent,
    by_reference,
    caller,
    channels_last,
    compiled,
    lower,
    operator,
    register_autocast,
    register_fake,
    wide,
)


def shuffle_block(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    kernel: int,
    stride: int,
    method: int,
    packed: Sequence[Tensor] | None = None,
    right: Tensor | None = None,
    out_method: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    """The block of :class:`detnas_d2.layers.ShuffleBlock`, convolutions given in order.

    Depthwise convolutions are followed by nothing, 1x1 convolutions by ReLU.

    Args:
        x: (N, C, H, W).
        weights, biases: of the main branch (1x1, depthwise, 1x1; for xception three times
            depthwise, 1x1), then, at stride 2, of the projection (depthwise, 1x1).
        kernel: 3, 5, 7, or 0 for xception. method: channel shuffle at stride 1, 1 or 2.
        packed: what :func:`pack_shuffle_block` made of the weights for this ``out_method``; on the
            CPU only the weights' shapes are read then.
        right: with ``packed`` at stride 1: ``x`` and this are the halves of the shuffled input.
        out_method: with ``packed``, 1, 2: the output is shuffled this way and split, as a following
            block of stride 1 wants it.

    Returns:
        stride 1: cat(left half of the shuffled input, main branch of the right half);
        stride 2: cat(projection, main branch). channels_last. With an ``out_method`` its halves.

    Raises:
        NotImplementedError: not differentiable, but an input requires grad where gradients are
            recorded, or has a tangent.
        RuntimeError: an argument has another shape, dtype or device than it should.
        ValueError: ``right`` or ``out_method`` without ``packed``.
    """
    if packed is not None:
        lists = list(weights), list(packed), list(biases)
        a, b = _shuffle_block_packed(x, right, *lists, kernel, stride, method, out_method)
        return (a, b) if out_method else a
    if right is not None or out_method:
        raise ValueError("right, out_method: expected with packed weights alone")
    if not compiled(x):
        args = (x, weights, biases, kernel, stride, method)
        return by_reference("shuffle_block", reference.shuffle_block, *args)
    return _shuffle_block(x, list(weights), list(biases), kernel, stride, method)


class PackedBlock(NamedTuple):
    """What :func:`shuffle_block` takes besides the input; packed for its :func:`out_methods`."""

    weights: list[Tensor]
    packed: list[Tensor]
    biases: list[Tensor]
    kernel: int
    stride: int
    method: int


def out_methods(strides: Sequence[int], methods: Sequence[int], ends: Sequence[int]) -> list[int]:
    """How :func:`shuffle_blocks` shuffles each block's output: as a following block of stride 1
    wants its halves, where the output itself is not wanted."""
    last = len(strides) - 1
    return [
        methods[i + 1] if i < last and i + 1 not in ends and strides[i + 1] == 1 else 0
        for i in range(len(strides))
    ]


def shuffle_blocks(x: Tensor, blocks: Sequence[PackedBlock], ends: Sequence[int]) -> list[Tensor]:
    """Several blocks one after the other by one operator, to the bit as by :func:`shuffle_block`.

    Args:
        x: (N, C, H, W).
        blocks: one at least.
        ends: numbers of blocks after which the output is wanted, ascending; the last is all.

    Returns:
        the output after so many blocks, for each of ``ends``.

    Raises:
        NotImplementedError, RuntimeError: as :func:`shuffle_block`.
    """
    weights, packed, biases, kernels, strides, methods = zip(*blocks, strict=True)
    lists = (list(chain.from_iterable(ts)) for ts in (weights, packed, biases))
    return _shuffle_blocks_packed(x, *lists, kernels, strides, methods, ends)


def takes_packed(x: Tensor) -> bool:
    """Whether :func:`shuffle_block` takes packed weights: where it is compiled."""
    return (x.is_cpu or x.is_cuda) and compiled(x)


def pack_shuffle_block(
    weights: Sequence[Tensor], kernel: int, stride: int, out_method: int = 0
) -> list[Tensor]:
    """The weights of :func:`shuffle_block` as its kernels read them.

    Args:
        weights, kernel, stride, out_method: see there.

    Returns:
        on the CPU one tensor each, (ceil(N / 16), C or k * k, 16), float64 for float64, else
        float32; on CUDA none. With ``out_method`` 2 and branches that end in multiples of 32
        channels those of their last convolutions are (2, N / 32, C, 16), channels 0, 2, ... before
        1, 3, ...: each half of the output by itself. A copy: later writes to the weights do not
        count.

    Raises:
        NotImplementedError, RuntimeError: as :func:`shuffle_block`.
    """
    return _pack_shuffle_block(list(weights), kernel, stride, out_method)


def _fake(x, weights, biases, kernel, stride, method):
    n, c, h, w = x.shape
    main = weights[5 if kernel == 0 else 2].shape[0]
    size = (-(-h // stride), -(-w // stride))
    return channels_last(x, n, main + (c // 2 if stride == 1 else c), *size)


def _pack_fake(weights, kernel, stride, out_method=0):
    if weights[0].is_cuda:
        return []
    last = {5 if kernel == 0 else 2, len(weights) - 1}
    parted = out_method == 2 and all(weights[i].shape[0] % 32 == 0 for i in last)
    depths = [w.shape[1] if w.shape[2] == 1 else w.shape[2] ** 2 for w in weights]
    return [
        wide(w, 2, w.shape[0] // 32, depth, 16)
        if parted and i in last
        else wide(w, (w.shape[0] + 15) // 16, depth, 16)
        for i, (w, depth) in enumerate(zip(weights, depths, strict=True))
    ]


def _packed_fake(x, right, weights, packed, biases, kernel, stride, method, out_method):
    n, c, h, w = x.shape
    passing = c if stride == 2 or right is not None else c // 2
    channels = passing + weights[5 if kernel == 0 else 2].shape[0]
    size = (-(-h // stride), -(-w // stride))
    if not out_method:
        return channels_last(x, n, channels, *size), x.new_empty(0)
    half = channels // 2
    return tuple(channels_last(x, n, k, *size) for k in (half, channels - half))


def _lower_packed(dtype, x, right, weights, *rest):
    right = None if right is None else lower(right, dtype)
    return lower(x, dtype), right, [lower(w, dtype) for w in weights], *rest


def _lower_blocks(dtype, x, weights, *rest):
    return lower(x, dtype), [lower(w, dtype) for w in weights], *rest


register_autocast("shuffle_block", _lower_blocks)
if has_extension():
    register_fake("shuffle_block", _fake)
    _shuffle_block = caller("shuffle_block")
    register_autocast("shuffle_block_packed", _lower_packed)
    register_autocast("shuffle_blocks_packed", _lower_blocks)
    register_fake("shuffle_block_packed", _packed_fake)
    register_fake("pack_shuffle_block", _pack_fake)
    _shuffle_block_packed = caller("shuffle_block_packed")
    _shuffle_blocks_packed = caller("shuffle_blocks_packed")
    _pack_shuffle_block = operator("pack_shuffle_block")
else:
    _shuffle_block_packed = absent("shuffle_block with packed weights")
    _shuffle_blocks_packed = absent("shuffle_blocks_packed")
    _pack_shuffle_block = absent("pack_shuffle_block")
