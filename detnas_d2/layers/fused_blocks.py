"""Chains of shuffle blocks through the operators, with statistics of the batch.

In training a block is one node of autograd, without gradients a chain of blocks is one operator.
Where neither is, a block is a chain of operators, two for each layer; where blocks do not fit,
their modules run.

Shape shorthand: maps (N, C, H, W), channels_last; scale, shift (C).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from detnas_d2 import ops
from detnas_d2.layers.batch_statistics import BatchNorms, over_ranks
from detnas_d2.layers.conv import ConvNormAct
from detnas_d2.layers.folded_norm import conv_norm_acts, kernel_of
from detnas_d2.layers.fused_ops import Pending, by_batch, conv_norm
from detnas_d2.layers.kept_weights import staying
from detnas_d2.layers.shuffle_block import ShuffleBlock
from detnas_d2.ops.shuffle_block import out_methods, takes_packed
from detnas_d2.ops.shuffle_block_stats import StatsBlock, shuffle_blocks_stats
from detnas_d2.utils.compat import is_any_autocast_enabled

Run = Callable[[Sequence[ShuffleBlock], Pending, Sequence[int]], list[Tensor]]
"""Runs blocks one after the other; the outputs after the first so many of them, ascending."""


def by_runs(
    blocks: Sequence[nn.Module],
    p: Pending,
    wanted: Collection[int],
    fits: Sequence[bool],
    run: Run,
    batches: int = 1,
) -> dict[int, Tensor]:
    """The outputs after the first ``wanted`` of the blocks, and the last one.

    Args:
        fits: for each block whether it is for ``run``, or its module runs.
    """
    outputs: dict[int, Tensor] = {}
    begin = 0
    for fit, group in groupby(zip(fits, blocks, strict=True), key=itemgetter(0)):
        part = [block for _, block in group]
        end = begin + len(part)
        if fit:
            inner = sorted(place for place in wanted if begin < place < end)
            ends = [place - begin for place in (*inner, end)]
            *found, x = run(part, p, ends)  # type: ignore[arg-type]
            outputs |= zip(inner, found, strict=True)
        else:
            x = materialise(p, batches)
            for place, block in enumerate(part, begin + 1):
                x = by_batch(block, x, batches)
                if place in wanted:
                    outputs[place] = x
        outputs[end] = x
        p, begin = Pending(x), end
    return outputs


def run_blocks(
    p: Pending,
    blocks: Sequence[nn.Module],
    wanted: Collection[int],
    norms: BatchNorms,
    fits: Sequence[bool],
) -> dict[int, Tensor]:
    """The outputs after the first ``wanted`` of the blocks, and the last one.

    All BatchNorms use statistics of the batch; those of ``norms`` are to be updated. ``fits``: as
    for :func:`by_runs`.
    """
    fit = [block for block, is_fit in zip(blocks, fits, strict=True) if is_fit]
    at_once = all(_fits_at_once(layer) for block in fit for layer in conv_norm_acts(block))  # type: ignore[arg-type]
    if not torch.is_grad_enabled():
        run = partial(_at_once if at_once else _one_by_one, norms)
    elif at_once and norms.batches == 1 and not is_any_autocast_enabled():
        run = partial(_one_by_one, norms, training=True)
    else:
        run = partial(_one_by_one, norms)
    return by_runs(blocks, p, wanted, fits, run, norms.batches)


def _fits_at_once(layer: ConvNormAct) -> bool:
    """Whether its block can run as one: no bias, no other ranks' values."""
    parts: Mapping[str, Any] = layer._modules
    return parts["conv"]._parameters["bias"] is None and not over_ranks(parts["norm"])


def _at_once(
    norms: BatchNorms, blocks: Sequence[ShuffleBlock], p: Pending, ends: Sequence[int]
) -> list[Tensor]:
    """All of the blocks through one operator, without gradients."""
    parts = list(map(_parts, blocks))
    taken = []
    for block, (convs, own) in zip(blocks, parts, strict=True):
        weights = [conv["weight"] for conv in convs]
        taken.append(
            StatsBlock(
                weights, _packed(block, weights), *_affine(own), kernel_of(block), block.stride,
                block.shuffle_method,
            )
        )  # fmt: skip
    if not all(block.packed for block in taken):
        taken = [block._replace(packed=[]) for block in taken]
    outputs, stats = shuffle_blocks_stats(*p, taken, ends, norms.batches)
    found = iter(stats)
    n, _, h, w = p.x.shape
    for block, (_, own) in zip(blocks, parts, strict=True):
        counts = _counts(block, len(own), n // norms.batches, h, w)
        for norm, count in zip(own, counts, strict=True):
            norms.consume(norm, next(found), count)
        h, w = -(-h // block.stride), -(-w // block.stride)
    return outputs


def _packed(block: ShuffleBlock, weights: list[Tensor]) -> list[Tensor]:
    """The weights as the CPU's kernels read them, where they do and stay as they are, else none."""
    kept, of = staying(block), weights[0]
    if kept is None or not (of.is_cpu and takes_packed(of)):
        return []
    if of.dtype not in (torch.float32, torch.float64) or is_any_autocast_enabled():
        return []
    found = kept.find(block, weights)
    if found is None:
        found = ops.pack_shuffle_block(weights, kernel_of(block), block.stride)
        kept.keep(found, sum(t.nbytes for t in found), block, weights)
    return found


def _parts(block: ShuffleBlock) -> tuple[list[Any], list[Any]]:
    """The parameters of its convolutions, and its BatchNorms."""
    parts: list[Mapping[str, Any]] = [layer._modules for layer in conv_norm_acts(block)]
    return [own["conv"]._parameters for own in parts], [own["norm"] for own in parts]


def _affine(norms: list[Any]) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """Weights, biases and epsilons of BatchNorms."""
    affine = [norm._parameters for norm in norms]
    return [a["weight"] for a in affine], [a["bias"] for a in affine], [norm.eps for norm in norms]


def _counts(block: ShuffleBlock, layers: int, images: int, height: int, width: int) -> list[int]:
    """Of values that each of its BatchNorms normalises."""
    counts = [images * -(-height // block.stride) * -(-width // block.stride)] * layers
    if block.op != "xception":  # else what comes first strides
        counts[0] = images * height * width
    return counts


def _one_by_one(
    norms: BatchNorms,
    blocks: Sequence[ShuffleBlock],
    p: Pending,
    ends: Sequence[int],
    training: bool = False,
) -> list[Tensor]:
    """One block after the other: nodes of autograd (``training``), or by their layers."""
    outputs = []
    halves: tuple[Tensor, Tensor] | None = None
    strides, methods = [b.stride for b in blocks], [b.shuffle_method for b in blocks]
    for number, (block, method) in enumerate(
        zip(blocks, out_methods(strides, methods, ends), strict=True), 1
    ):
        if block.stride == 1 and halves is None:
            halves = _Split.apply(materialise(p, norms.batches), block.shuffle_method)
        run = _block_at_once if training else _block_by_layers
        out = run(block, p, halves, method, norms)
        if isinstance(out, Tensor):
            halves, p = None, Pending(out)
        else:
            halves = out
        if number in ends:
            outputs.append(p.x)
    return outputs


def _block_by_layers(
    block: ShuffleBlock,
    p: Pending,
    halves: tuple[Tensor, Tensor] | None,
    method: int,
    norms: BatchNorms,
) -> tuple[Tensor, Tensor] | Tensor:
    """The output of a block, or (method 1, 2) its halves; input: p at stride 2, else halves."""
    if block.projection is not None:  # stride 2
        left, right = chain(block.projection, p, norms), chain(block.main, p, norms)
    else:
        assert halves is not None
        left, right = Pending(halves[0]), chain(block.main, Pending(halves[1]), norms)
    return join(left, right, method, method != 0, norms.batches)


def _block_at_once(
    block: ShuffleBlock,
    p: Pending,
    halves: tuple[Tensor, Tensor] | None,
    method: int,
    norms: BatchNorms,
) -> tuple[Tensor, Tensor] | Tensor:
    """The same as one node of autograd."""
    convs, own = _parts(block)
    right = None
    if block.stride == 1:
        assert halves is not None
        p, right = Pending(halves[0]), halves[1]
    weights = [conv["weight"] for conv in convs]
    out, stats = ops.shuffle_block_training(
        p.x, right, p.scale, p.shift, p.relu, weights, *_affine(own), kernel_of(block),
        block.stride, method,
    )  # fmt: skip
    n, _, h, w = p.x.shape
    for norm, s, count in zip(own, stats, _counts(block, len(own), n, h, w), strict=True):
        norms.consume(norm, s, count)
    return out


def chain(layers: nn.Sequential, p: Pending, norms: BatchNorms) -> Pending:
    """The layers one after the other."""
    for layer in layers:
        assert isinstance(layer, ConvNormAct)
        p = conv_norm(layer, p, norms)
    return p


class _Split(torch.autograd.Function):
    """The halves of the shuffled map, as views where the shuffle allows; one pass back."""

    @staticmethod
    def forward(ctx, x: Tensor, method: int) -> tuple[Tensor, Tensor]:
        ctx.method = method
        half = x.shape[1] // 2
        halves = ops.shuffle_concat(x[:, :half], x[:, half:], method=method, split=True)
        assert isinstance(halves, tuple)
        return halves

    @staticmethod
    def backward(ctx, grad_left: Tensor, grad_right: Tensor) -> tuple[Tensor, None]:
        # The two shuffles are each other's inverse.
        grad = ops.shuffle_concat(grad_left, grad_right, method=3 - ctx.method)
        assert isinstance(grad, Tensor)
        return grad, None


def join(
    left: Pending, right: Pending, method: int, split: bool, batches: int
) -> tuple[Tensor, Tensor] | Tensor:
    """Both branches concatenated, what is pending applied; see :func:`ops.shuffle_concat`."""
    return ops.shuffle_concat(
        left.x, right.x, left.scale, left.shift, right.scale, right.shift, left.relu, right.relu,
        method, split, batches,
    )  # fmt: skip


def materialise(p: Pending, batches: int = 1) -> Tensor:
    """The map with what is pending on it applied."""
    if p.scale is None and not p.relu:
        return p.x
    x, scale, shift, relu = p
    assert scale is not None and shift is not None
    half = x.shape[1] // 2
    left, right = (
        (scale[..., part], shift[..., part]) for part in (slice(half), slice(half, None))
    )
    whole = ops.shuffle_concat(x[:, :half], x[:, half:], *left, *right, relu, relu, batches=batches)
    assert isinstance(whole, Tensor)
    return whole
