"""Chains of shuffle blocks through the operators of ``detnas_d2.ops``.

What the modules compute, but for rounding: in training and recalibration no normalised tensor is
written. A convolution leaves its raw output and the output's statistics; the BatchNorm becomes an
affine map pending on that output, which the next operator applies, ReLU included, while it reads.
Between blocks of stride 1 activations stay split and shuffled as the next block wants them.
A block is one node of autograd. Without gradients it is one operator: in recalibration a chain of
the same, which returns all statistics, in evaluation one with BatchNorms folded into weights.

Shape shorthand: maps (N, C, H, W), channels_last; scale, shift (C).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate, groupby
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from detnas_d2 import ops
from detnas_d2.layers.batch_norm_mode import uses_batch_statistics
from detnas_d2.layers.batch_statistics import BatchNorms, over_ranks
from detnas_d2.layers.block_choice import choose
from detnas_d2.layers.conv import ConvNormAct
from detnas_d2.layers.folded_norm import (
    conv_norm_acts,
    eval_blocks,
    eval_layer,
    kernel_of,
    norm_of,
)
from detnas_d2.layers.fused_ops import Pending, any_hooked, by_batch, can_fuse_layers, conv_norm
from detnas_d2.layers.over_ranks import on_one_machine, several_processes
from detnas_d2.layers.shuffle_block import ShuffleBlock
from detnas_d2.ops.autotune import AutotuneCache
from detnas_d2.utils.compat import is_any_autocast_enabled


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


def run_blocks(
    p: Pending,
    blocks: Sequence[nn.Module],
    wanted: Collection[int],
    norms: BatchNorms,
    fits: Sequence[bool] | None = None,
) -> tuple[Tensor, dict[int, Tensor]]:
    """The output of the last block and those of the blocks ``wanted``, by index.

    All BatchNorms use statistics of the batch; those of ``norms`` are to be updated. ``fits``: for
    each block whether the operators run it, or its modules; by default they run every shuffle
    block.
    """
    fits = fits or [isinstance(block, ShuffleBlock) for block in blocks]
    outputs: dict[int, Tensor] = {}
    halves: tuple[Tensor, Tensor] | None = None
    for i, block in enumerate(blocks):
        if not fits[i] or not isinstance(block, ShuffleBlock):
            p = Pending(by_batch(block, materialise(p, norms.batches), norms.batches))
            if i in wanted:
                outputs[i] = p.x
            continue
        if block.stride == 1 and halves is None:
            halves = _Split.apply(materialise(p, norms.batches), block.shuffle_method)
        more = i + 1 < len(blocks) and fits[i + 1] and i not in wanted
        # A following block of stride 1 takes its halves, shuffled its way.
        following = blocks[i + 1] if more else None
        method = 0
        if isinstance(following, ShuffleBlock) and following.stride == 1:
            method = following.shuffle_method
        layers = conv_norm_acts(block)
        if _at_once(norms) and all(map(_fits_at_once, layers)):
            out = _block_at_once(block, layers, p, halves, method, norms)
        else:
            out = _block_by_layers(block, p, halves, method, norms)
        if isinstance(out, Tensor):
            halves, p = None, Pending(out)
        else:
            halves = out
        if i in wanted:
            outputs[i] = p.x
    return p.x, outputs


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


def _at_once(norms: BatchNorms) -> bool:
    """Whether blocks can run as one: with gradients not under autocast, and one batch only."""
    return not torch.is_grad_enabled() or (norms.batches == 1 and not is_any_autocast_enabled())


def _fits_at_once(layer: ConvNormAct) -> bool:
    """Whether its block can run as one: no bias, no other ranks' values."""
    parts: Mapping[str, Any] = layer._modules
    return parts["conv"]._parameters["bias"] is None and not over_ranks(parts["norm"])


def _block_at_once(
    block: ShuffleBlock,
    layers: Sequence[ConvNormAct],
    p: Pending,
    halves: tuple[Tensor, Tensor] | None,
    method: int,
    norms: BatchNorms,
) -> tuple[Tensor, Tensor] | Tensor:
    """The same through one operator, in training one node of autograd."""
    parts: list[Mapping[str, Any]] = [layer._modules for layer in layers]
    own = [modules["norm"] for modules in parts]
    if block.stride == 1:
        assert halves is not None
        p = Pending(halves[0])
    args = (
        p.x,
        halves[1] if halves is not None and block.stride == 1 else None,
        p.scale,
        p.shift,
        p.relu,
        [modules["conv"]._parameters["weight"] for modules in parts],
        [norm._parameters["weight"] for norm in own],
        [norm._parameters["bias"] for norm in own],
        [norm.eps for norm in own],
        kernel_of(block),
        block.stride,
        method,
    )
    if torch.is_grad_enabled():
        out, stats = ops.shuffle_block_training(*args)
    else:
        out, stats = ops.shuffle_block_stats(*args, norms.batches)
    n, _, h, w = p.x.shape
    n //= norms.batches
    counts = [n * -(-h // block.stride) * -(-w // block.stride)] * len(own)
    if kernel_of(block) > 0:  # else what comes first strides
        counts[0] = n * h * w
    for norm, s, count in zip(own, stats, counts, strict=True):
        norms.consume(norm, s, count)
    return out


def _run_alone(blocks: Sequence[ShuffleBlock], x: Tensor, batches: int = 1) -> Tensor:
    norms = BatchNorms(batches)
    y, _ = run_blocks(Pending(x), blocks, (), norms)
    norms.update()
    return y


def _evaluate_alone(blocks: Sequence[ShuffleBlock], x: Tensor) -> Tensor:
    outputs = _evaluate_blocks(blocks, x, {len(blocks)}, None)
    return outputs[len(blocks)]


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


def fused_forward(
    stem: ConvNormAct | None,
    blocks: Sequence[nn.Module],
    last: ConvNormAct | None,
    x: Tensor,
    wanted: Collection[int],
    first: int = 0,
    extra: Iterable[nn.Module] = (),
    autotune: AutotuneCache | None = None,
    batches: int = 1,
) -> tuple[dict[int, Tensor], Tensor | None] | None:
    """Outputs ``wanted``, by depth, and that of ``last`` if it is given.

    Args:
        stem: None if ``x`` is not the images but the output at depth ``first``.
        blocks: identities are left out, others than shuffle blocks run as modules.
        wanted: depths; 0 is the output of the stem, ``first + d`` that of the d-th of ``blocks``.
        extra: modules around the blocks, whose hooks count too.
        autotune: run by operators only the blocks that they are right and faster for here; in
            training ``stem`` and ``last``, which are not tried, run as modules.
        batches: of one size that ``x`` has one after the other. Under recalibration's
            :func:`~detnas_d2.layers.batch_norm_mode.use_batch_statistics` each is normalised by
            itself, and everything is that of one by one, to the bit.

    Returns:
        None where the modules have to run themselves: see :func:`can_fuse_layers`; in evaluation
        also while gradients are recorded. With ``autotune`` also where processes cannot agree on
        choices and would round differently, and where statistics are merged over them: what runs
        then is not what was tried.
    """
    around = [layer for layer in (stem, last) if layer is not None]
    fused = [block for block in blocks if isinstance(block, ShuffleBlock)]
    modules: list[ConvNormAct | ShuffleBlock] = [*around, *fused]
    branches = [part for block in fused for part in block._modules.values() if part is not None]
    layers = [layer for module in modules for layer in conv_norm_acts(module)]
    skips = [isinstance(block, nn.Identity) for block in blocks]
    skipped = [block for block, skip in zip(blocks, skips, strict=True) if skip]
    if any_hooked((*extra, *skipped, *branches)) or not can_fuse_layers(modules, layers, x):
        return None
    norms = list(map(norm_of, layers))
    modes = set(map(uses_batch_statistics, norms))
    if len(modes) != 1:
        return None
    if autotune is not None and not (autotune.path and on_one_machine()) and several_processes():
        return None
    # Positions count the blocks that are not skipped, after which nothing is new.
    chain = [block for block, skip in zip(blocks, skips, strict=True) if not skip]
    positions = {} if stem is None else {first: 0}
    positions |= enumerate(accumulate(int(not skip) for skip in skips), first + 1)
    needed = {positions[depth] for depth in wanted if depth in positions}
    if modes == {True}:
        if autotune is not None and any(map(over_ranks, norms)):
            return None
        found, y = _with_batch_statistics(stem, chain, last, x, needed, autotune, batches)
    elif not torch.is_grad_enabled():
        found, y = _with_running_statistics(stem, chain, last, x, needed, autotune)
    else:
        return None
    return {depth: found[positions[depth]] for depth in wanted if depth in positions}, y


def _with_running_statistics(
    stem: ConvNormAct | None,
    blocks: Sequence[nn.Module],
    last: ConvNormAct | None,
    x: Tensor,
    wanted: Collection[int],
    autotune: AutotuneCache | None,
) -> tuple[dict[int, Tensor], Tensor | None]:
    """In evaluation: the outputs after the first ``wanted`` of the blocks, and that of ``last``."""
    x = x.contiguous(memory_format=torch.channels_last)
    if stem is not None:
        x = eval_layer(stem, x)
    fits = None
    if autotune is not None:
        fits = choose(autotune, blocks, x, "evaluation", _evaluate_alone)
    end = {len(blocks)} if last is not None else set()
    found = _evaluate_blocks(blocks, x, {*wanted, *end}, fits)
    y = None if last is None else eval_layer(last, found[len(blocks)])
    return {i: found[i] for i in wanted}, y


def _evaluate_blocks(
    blocks: Sequence[nn.Module], x: Tensor, wanted: Collection[int], fits: Sequence[bool] | None
) -> dict[int, Tensor]:
    """In evaluation: the outputs after the first ``wanted`` of the blocks, of which the operators
    run those that ``fits`` says, by default every shuffle block."""
    fits = fits or [isinstance(block, ShuffleBlock) for block in blocks]
    outputs = {0: x} if 0 in wanted else {}
    begin = 0
    for fit, run in groupby(zip(fits, blocks, strict=True), key=itemgetter(0)):
        part = [block for _, block in run]
        end = begin + len(part)
        if fit:
            inner = sorted(place for place in wanted if begin < place < end)
            ends = [place - begin for place in (*inner, end)]
            *found, x = eval_blocks(part, x, ends)  # type: ignore[arg-type]
            outputs |= zip(inner, found, strict=True)
        else:
            for place, block in enumerate(part, begin + 1):
                x = block(x)
                if place in wanted:
                    outputs[place] = x
        if end in wanted:
            outputs[end] = x
        begin = end
    return outputs


def _with_batch_statistics(
    stem: ConvNormAct | None,
    blocks: Sequence[nn.Module],
    last: ConvNormAct | None,
    x: Tensor,
    wanted: Collection[int],
    autotune: AutotuneCache | None,
    batches: int,
) -> tuple[dict[int, Tensor], Tensor | None]:
    """The same in training and recalibration."""
    outputs: dict[int, Tensor] = {}
    norms = BatchNorms(batches)
    p = Pending(x)
    if stem is not None:
        alone = autotune is not None
        p = Pending(by_batch(stem, x, batches)) if alone else conv_norm(stem, p, norms)
    if 0 in wanted:
        p = Pending(materialise(p, batches))
        outputs[0] = p.x
    mode = "training" if torch.is_grad_enabled() else "statistics"
    fits = None
    if autotune is not None:  # as for a batch alone
        fits = choose(autotune, blocks, p.x[: len(p.x) // batches], mode, _run_alone)
    x, found = run_blocks(p, blocks, {position - 1 for position in wanted}, norms, fits)
    outputs |= {index + 1: output for index, output in found.items()}
    if last is None:
        y = None
    elif autotune is None:
        y = materialise(conv_norm(last, Pending(x), norms), batches)
    else:
        y = by_batch(last, x, batches)
    norms.update()
    return outputs, y
