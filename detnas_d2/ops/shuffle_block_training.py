"""A whole ShuffleNetV2 block in training: one node of autograd instead of two for each convolution.

The operators it is made of run as they do one by one, in both directions
(csrc/shuffle_block_training.cpp); what autograd and the interpreter do around each of them is done
once for a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from detnas_d2.ops import reference
from detnas_d2.ops.extension import has_extension
from detnas_d2.ops.reference import BNStats
from detnas_d2.ops.registration import (
    by_reference,
    channels_last,
    operator,
    recorded_gradients,
    register_fake,
    takes,
    tensors,
)
from detnas_d2.utils.compat import below_autograd, is_any_autocast_enabled


def _backward_fake(
    grad_a, grad_b, left, right, scale, shift, relu, weights, gammas, betas, eps, kernel, stride,
    out_method, made, wanted,
):  # fmt: skip
    n, parameters = len(eps), (*weights, *gammas, *betas)
    inputs = [
        left.new_empty(0) if not want
        else channels_last(t, *t.shape) if t.dim() == 4 else t.new_empty(t.shape)
        for t, want in zip((left, right, scale, shift), wanted, strict=False)
    ]  # fmt: skip
    grads = [
        p.new_empty(p.shape if want else 0) for p, want in zip(parameters, wanted[4:], strict=True)
    ]
    return *inputs, grads[:n], grads[n : 2 * n], grads[2 * n :]


if has_extension():
    register_fake("shuffle_block_training_backward", _backward_fake)
    _training = operator("shuffle_block_training")
    _backward = operator("shuffle_block_training_backward")


class _Options(NamedTuple):
    relu: bool  # pending on the input
    eps: Sequence[float]
    kernel: int
    stride: int
    out_method: int
    stats: list[BNStats]  # filled by the forward pass


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, o, left, right, scale, shift, *parameters):
        args = _arguments(o, left, right, scale, shift, parameters)
        with below_autograd():
            a, b, made = _training(*args)
        o.stats.extend(_stats(made))
        ctx.options = o
        ctx.save_for_backward(left, right, scale, shift, *parameters, *made)
        return (a, b) if o.out_method else a

    @staticmethod
    def backward(ctx, grad_a, grad_b=None):
        o: _Options = ctx.options
        n, (left, right, scale, shift, *saved) = len(o.eps), ctx.saved_tensors
        args = _arguments(o, left, right, scale, shift, saved[: 3 * n])
        if torch.is_grad_enabled():
            of = reference.shuffle_block_stats
            grads = recorded_gradients(of, args, (grad_a, grad_b))
            return None, *grads[:4], *(g for some in grads[5:8] for g in cast(list, some))
        need = ctx.needs_input_grad[1:]
        *ends, d_weights, d_gammas, d_betas = _backward(grad_a, grad_b, *args, saved[3 * n :], need)
        found = (*ends, *d_weights, *d_gammas, *d_betas)
        return None, *(d if wanted else None for d, wanted in zip(found, need, strict=True))


def _arguments(
    o: _Options,
    left: Tensor,
    right: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    parameters: Sequence[Tensor],
) -> tuple:
    """Those of :func:`shuffle_block_training`."""
    n = len(o.eps)
    lists = (parameters[i * n : (i + 1) * n] for i in range(3))
    return left, right, scale, shift, o.relu, *lists, o.eps, o.kernel, o.stride, o.out_method


def _stats(made: Sequence[Tensor]) -> list[BNStats]:
    """Of all layers, each of which made a map, scale, shift, count, mean and m2."""
    return [BNStats(*made[i + 3 : i + 6]) for i in range(0, len(made), 6)]


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
    if torch.compiler.is_compiling():  # each operator with its own gradient, which it can trace
        args = (left, right, scale, shift, relu, weights, gammas, betas, eps, kernel, stride)
        a, b, made = _training(*args, out_method)
        found = [BNStats(*(t.detach() for t in stats)) for stats in _stats(made)]
        return (a, b) if out_method else a, found
    o = _Options(relu, eps, kernel, stride, out_method, [])
    out = _Block.apply(o, left, right, scale, shift, *tensors([*weights, *gammas, *betas]))
    return out, o.stats
