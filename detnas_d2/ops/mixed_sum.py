"""The weighted sum of a mixed block's candidates, BatchNorms included, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detnas_d2.ops import reference
from detnas_d2.ops.extension import has_extension
from detnas_d2.ops.registration import (
    by_reference,
    channels_last,
    differentiable,
    operator,
    recorded_gradients,
    register_fake,
    takes,
    wide,
)


def mixed_sum(
    y: Sequence[Tensor],
    scale: Sequence[Tensor],
    shift: Sequence[Tensor],
    weights: Tensor,
    residual: Tensor | None = None,
) -> Tensor:
    """sum_i weights[i] * (scale_i * y_i + shift_i) (+ residual): every y is read once.

    Args:
        y: n maps (N, C, H, W) of one shape and dtype, 1 to 32; scale, shift: n vectors (C).
        weights: (n). residual: (N, C, H, W).

    Returns:
        (N, C, H, W) channels_last.

    Raises:
        RuntimeError: an argument has another shape, dtype, device or number than it should.
    """
    if not y:
        raise RuntimeError("y: expected 1 to 32 tensors, got 0")
    if not takes(y[0]):
        return by_reference("mixed_sum", reference.mixed_sum, y, scale, shift, weights, residual)
    return _mixed_sum(list(y), list(scale), list(shift), weights, residual)


def _fake(y, scale, shift, weights, residual):
    return channels_last(y[0], *y[0].shape)


def _backward_fake(grad, y, scale, shift, weights):
    c = y[0].shape[1]
    return (
        [channels_last(t, *t.shape) for t in y],
        [wide(t, c) for t in y],
        [wide(t, c) for t in y],
        wide(y[0], len(y)),
    )


def _setup(ctx, inputs, output):
    y, scale, shift, weights, residual = inputs
    ctx.count, ctx.has_residual = len(y), residual is not None
    ctx.save_for_backward(*y, *scale, *shift, weights)


def _backward(ctx, grad):
    n = ctx.count
    *vectors, weights = ctx.saved_tensors
    y, scale, shift = vectors[:n], vectors[n : 2 * n], vectors[2 * n :]
    rest = grad if ctx.has_residual else None
    if torch.is_grad_enabled():
        args = (y, scale, shift, weights)
        return *recorded_gradients(reference.mixed_sum, args, (grad,)), rest
    dy, da, db, dw = _mixed_sum_backward(grad, y, scale, shift, weights)
    return dy, da, db, dw.to(weights.dtype), rest


if has_extension():
    register_fake("mixed_sum", _fake)
    register_fake("mixed_sum_backward", _backward_fake)
    _mixed_sum_backward = operator("mixed_sum_backward")
    _mixed_sum = differentiable("mixed_sum", _setup, _backward)
