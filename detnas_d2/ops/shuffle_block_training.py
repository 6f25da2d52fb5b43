"""A whole ShuffleNetV2 block in training: one node of autograd instead of two for each convolution.

The operators it is made of run as they do one by one, in both directions; what autograd and the
interpreter do around each of them is done once for a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple, cast

import torch
from torch import Tensor

from detnas_d2.ops import reference
from detnas_d2.ops.extension import has_extension
from detnas_d2.ops.reference import BNStats
from detnas_d2.ops.registration import (
    by_reference,
    operator,
    recorded_gradients,
    takes,
    tensors,
)
from detnas_d2.utils.compat import below_autograd, is_any_autocast_enabled

if has_extension():
    _shuffle, _shuffle_backward = operator("shuffle_concat"), operator("shuffle_concat_backward")
    _pointwise, _depthwise = operator("pointwise_conv_bn"), operator("depthwise_conv_bn")
    _pointwise_backward = operator("pointwise_conv_backward")
    _depthwise_backward = operator("depthwise_conv_backward")
    _bn_fold_backward = operator("bn_fold_backward")


class _Options(NamedTuple):
    relu: bool  # pending on the input
    eps: Sequence[float]
    kernel: int
    stride: int
    out_method: int
    stats: list[BNStats]  # filled by the forward pass

    @property
    def branches(self) -> list[range]:
        """The layers of the main branch and of the projection, which is empty at stride 1."""
        main = 6 if self.kernel == 0 else 3
        return [range(main), range(main, len(self.eps))]

    def stride_of(self, layer: int) -> int:
        """That of a depthwise convolution: the first one of a branch strides."""
        first = 0 if self.kernel == 0 else 1
        return self.stride if layer in (first, self.branches[1].start) else 1


class _Map(NamedTuple):
    """What a layer leaves, or what a branch reads: a map and what is pending on it."""

    x: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None
    relu: bool = False


def _made(
    o: _Options,
    left: Tensor,
    right: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    weights: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
) -> tuple[tuple[Tensor, Tensor], list[tuple[Tensor, ...]]]:
    """The output's halves (a whole one and an empty one without a method), and of every layer the
    map, its pending scale and shift, count, mean and m2."""
    made: list[tuple[Tensor, ...]] = []
    ends = []
    for branch in o.branches:
        p = _Map(left, scale, shift, o.relu)
        if right is not None and branch.start == 0:
            p = _Map(right)
        for i in branch:
            w = weights[i]
            args, norm = (*_before(p, w), None), (gammas[i], betas[i], o.eps[i])
            if w.shape[2] > 1:
                y, *stats, a, b = _depthwise(*args, o.stride_of(i), 1, *norm)
            else:
                y, *stats, a, b = _pointwise(*args, 1, *norm)
            p = _Map(y, a, b, w.shape[2] == 1)
            made.append((y, a, b, *stats))
        ends.append(p)
    return _shuffle(*_both(ends[1], ends[0]), o.out_method, o.out_method != 0), made


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, o, left, right, scale, shift, *parameters):
        n = len(o.eps)
        lists = (parameters[i * n : (i + 1) * n] for i in range(3))
        with below_autograd():
            out, made = _made(o, left, right, scale, shift, *lists)
        o.stats.extend(BNStats(*stats) for _, _, _, *stats in made)
        ctx.options = o
        ctx.save_for_backward(left, right, scale, shift, *parameters, *chain(*made))
        return out if o.out_method else out[0]

    @staticmethod
    def backward(ctx, grad_a, grad_b=None):
        o: _Options = ctx.options
        n, saved = len(o.eps), ctx.saved_tensors
        left, right, scale, shift, *parameters = saved[: 4 + 3 * n]
        weights, gammas, betas = (parameters[i * n : (i + 1) * n] for i in range(3))
        if torch.is_grad_enabled():
            lists = (weights, gammas, betas)
            maps = (left, right, scale, shift, o.relu)
            args = (*maps, *lists, o.eps, o.kernel, o.stride, o.out_method)
            grads = recorded_gradients(reference.shuffle_block_stats, args, (grad_a, grad_b))
            return None, *grads[:4], *(g for some in grads[5:8] for g in cast(list, some))

        rows = [saved[i : i + 6] for i in range(4 + 3 * n, len(saved), 6)]
        made = [
            _Map(y, a, b, w.shape[2] == 1) for (y, a, b, *_), w in zip(rows, weights, strict=True)
        ]
        main, projection = o.branches
        start = _Map(left, scale, shift, o.relu)
        a, b = made[projection[-1]] if projection else start, made[main[-1]]
        if grad_b is None:
            grad_b = grad_a.new_empty(0)
        d_left, d_right, *vectors = _shuffle_backward(
            grad_a, grad_b, *_both(a, b), o.out_method, o.out_method != 0
        )
        need = ctx.needs_input_grad[1:]
        found: list[Tensor | None] = [None] * (4 + 3 * n)

        def back(branch: range, source: _Map, wanted: bool, grads: Sequence[Tensor]) -> tuple:
            """Gradients of what the branch reads, and of scale and shift pending on it."""
            own = [any(need[4 + i + k * n] for k in range(3)) for i in branch]
            for i in reversed(branch):
                p = made[i - 1] if i > branch.start else source
                w, (y, _, _, *stats) = weights[i], rows[i]
                grad_y, *grad_affine = grads
                norm = _bn_fold_backward(*grad_affine, *stats, gammas[i], o.eps[i])
                mask = [wanted or any(own[: i - branch.start]), need[4 + i], False]
                args = (grad_y, *norm[:2], *_before(p, w), y, stats[1], False)
                if w.shape[2] > 1:
                    dx, dw, *affine, _ = _depthwise_backward(*args, o.stride_of(i), 1, mask)
                else:
                    dx, dw, *affine, _ = _pointwise_backward(*args, 1, mask)
                if mask[1]:
                    found[4 + i] = dw
                for k, of, d in ((1, gammas[i], norm[2]), (2, betas[i], norm[3])):
                    if need[4 + i + k * n]:
                        found[4 + i + k * n] = d if d.dtype == of.dtype else d.to(of.dtype)
                if not mask[0]:
                    return (None,) * 3
                grads = (dx, *affine)
            return tuple(grads) if source.scale is not None else (grads[0], None, None)

        if right is None:
            wanted = any(need[:4])
            both = (
                back(main, start, wanted, (d_right, *vectors[2:])),
                back(projection, start, wanted, (d_left, *vectors[:2])),
            )
            dx, *affine = (None if x is None else x + y for x, y in zip(*both, strict=True))
            ends = [dx, None, *affine]
        else:
            dx, *_ = back(main, _Map(right), need[1], (d_right, *vectors[2:]))
            ends = [d_left, dx, None, None]
        found[:4] = (end if wanted else None for end, wanted in zip(ends, need, strict=False))
        return None, *found


def _before(p: _Map, weight: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, bool]:
    """The first arguments of a convolution."""
    return p.x, weight, p.scale, p.shift, p.relu


def _both(a: _Map, b: _Map) -> tuple[Tensor | bool | None, ...]:
    """The first arguments of the shuffle."""
    return a.x, b.x, a.scale, a.shift, b.scale, b.shift, a.relu, b.relu


def shuffle_block_training(
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
) -> tuple[Tensor | tuple[Tensor, Tensor], list[BNStats]]:
    """:func:`shuffle_block_stats` of one batch with gradients; under autocast by the reference.

    Args: as there.

    Returns:
        as there. Gradients are those of the output; statistics have none.

    Raises:
        RuntimeError: an argument has another shape, dtype or device than it should.
    """
    if not takes(left) or is_any_autocast_enabled():
        args = (left, right, scale, shift, relu, weights, gammas, betas, eps, kernel, stride)
        return by_reference("shuffle_block_stats", reference.shuffle_block_stats, *args, out_method)
    o = _Options(relu, eps, kernel, stride, out_method, [])
    if torch.compiler.is_compiling():  # each operator with its own gradient, which it can trace
        halves, made = _made(o, left, right, scale, shift, weights, gammas, betas)
        found = [BNStats(*(t.detach() for t in stats)) for _, _, _, *stats in made]
        return halves if out_method else halves[0], found
    out = _Block.apply(o, left, right, scale, shift, *tensors([*weights, *gammas, *betas]))
    return out, o.stats
