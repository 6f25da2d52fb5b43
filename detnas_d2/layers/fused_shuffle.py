"""Chains of shuffle blocks through the operators of ``detnas_d2.ops``.

What the modules compute, but for rounding: in training and recalibration no normalised tensor is
written. A convolution leaves its raw output and the output's statistics; the BatchNorm becomes an
affine map pending on that output, which the next operator applies, ReLU included, while it reads.
Between blocks of stride 1 activations stay split and shuffled as the next block wants them
(:mod:`~detnas_d2.layers.fused_blocks`). In evaluation BatchNorms are folded into weights.

Shape shorthand: maps (N, C, H, W), channels_last; scale, shift (C).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from detnas_d2.layers.batch_norm_mode import uses_batch_statistics
from detnas_d2.layers.batch_statistics import BatchNorms, over_ranks
from detnas_d2.layers.block_choice import choose
from detnas_d2.layers.conv import ConvNormAct
from detnas_d2.layers.folded_norm import conv_norm_acts, eval_blocks, eval_layer, norm_of
from detnas_d2.layers.fused_blocks import by_runs, materialise, run_blocks
from detnas_d2.layers.fused_ops import Pending, any_hooked, by_batch, can_fuse_layers, conv_norm
from detnas_d2.layers.over_ranks import on_one_machine, several_processes
from detnas_d2.layers.shuffle_block import ShuffleBlock
from detnas_d2.ops.autotune import AutotuneCache


def _run_alone(blocks: Sequence[ShuffleBlock], x: Tensor, batches: int = 1) -> Tensor:
    norms = BatchNorms(batches)
    outputs = run_blocks(Pending(x), blocks, (), norms, [True] * len(blocks))
    norms.update()
    return outputs[len(blocks)]


def _evaluate_alone(blocks: Sequence[ShuffleBlock], x: Tensor) -> Tensor:
    return eval_blocks(blocks, x, [len(blocks)])[0]


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
    if autotune is None:
        fits = _are_shuffle_blocks(blocks)
    else:
        fits = choose(autotune, blocks, x, "evaluation", _evaluate_alone)
    found = {0: x} | by_runs(blocks, Pending(x), wanted, fits, _evaluate)
    return found, None if last is None else eval_layer(last, found[len(blocks)])


def _evaluate(blocks: Sequence[ShuffleBlock], p: Pending, ends: Sequence[int]) -> list[Tensor]:
    return eval_blocks(blocks, p.x, ends)


def _are_shuffle_blocks(blocks: Sequence[nn.Module]) -> list[bool]:
    return [isinstance(block, ShuffleBlock) for block in blocks]


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
    norms = BatchNorms(batches)
    p = Pending(x)
    if stem is not None:
        alone = autotune is not None
        p = Pending(by_batch(stem, x, batches)) if alone else conv_norm(stem, p, norms)
    if 0 in wanted or not blocks:
        p = Pending(materialise(p, batches))
    mode = "training" if torch.is_grad_enabled() else "statistics"
    if autotune is None:
        fits = _are_shuffle_blocks(blocks)
    else:  # as for a batch alone
        fits = choose(autotune, blocks, p.x[: len(p.x) // batches], mode, _run_alone)
    found = {0: p.x} | run_blocks(p, blocks, wanted, norms, fits)
    x = found[len(blocks)]
    if last is None:
        y = None
    elif autotune is None:
        y = materialise(conv_norm(last, Pending(x), norms), batches)
    else:
        y = by_batch(last, x, batches)
    norms.update()
    return found, y
