"""BatchNorm statistics, their merge, and the affine map they make of a BatchNorm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detnas_d2.ops import reference
from detnas_d2.ops.extension import has_extension
from detnas_d2.ops.reference import BNStats, bn_stats_merge
from detnas_d2.ops.registration import (
    by_reference,
    differentiable,
    fake_stats,
    operator,
    recorded_gradients,
    register_fake,
    takes,
    undefined,
    wide,
)

__all__ = ["BNStats", "bn_fold", "bn_stats", "bn_stats_merge"]


def bn_stats(
    x: Tensor | Sequence[Tensor],
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
) -> BNStats:
    """Count, mean and sum of squared deviations per channel, in one read of ``x``.

    Shifted sums per block of pixels, merged with Chan's formula in float64: exact for constant
    channels, accurate where the mean is far larger than the deviation.

    Args:
        x: (N, C, H, W), channels_last or contiguous; on the CPU neither is converted. Or several
            maps of one C, dtype and device, whose statistics are made together, as for a BatchNorm
            that pyramid levels share: on CUDA in one launch for up to eight.
        scale, shift: an affine map (C) pending on x, both or neither.
        relu: ReLU after it.

    Returns:
        count (float64 scalar), mean and m2 (C), float32 (float64 if x is); variance = m2 / count.
        Zeros for an empty x; empty maps among several count nothing.

    Raises:
        RuntimeError: an argument has another shape, dtype or device than it should, or x is an
            empty sequence.
    """
    if not isinstance(x, Tensor):
        x = list(x)
        if not x:
            raise RuntimeError("x: expected at least one tensor")
    if not takes(x if isinstance(x, Tensor) else x[0]):
        return by_reference("bn_stats", reference.bn_stats, x, scale, shift, relu)
    if not isinstance(x, Tensor):
        return BNStats(*_bn_stats_list(x, scale, shift, relu))
    return BNStats(*_bn_stats(x, scale, shift, relu))


def bn_fold(
    stats: BNStats, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The affine map of a BatchNorm with these statistics.

    Args:
        stats: of its input, as :func:`bn_stats` makes them.
        gamma, beta: weight and bias (C), or None.
        eps: added to the variance, which is m2 / count.

    Returns:
        scale and shift (C), dtype of the statistics: gamma / sqrt(variance + eps), and beta -
        mean * scale.

    Raises:
        RuntimeError: an argument has another shape, dtype or device than it should.
    """
    if takes(stats.mean):
        return _bn_fold(*stats, gamma, beta, eps)
    return by_reference("bn_fold", reference.bn_fold, stats, gamma, beta, eps)


def _stats_fake(x, scale, shift, relu):
    return fake_stats(x, True, x.shape[1])


def _stats_backward_fake(grad_mean, grad_m2, x, mean, scale, shift, relu):
    c = 0 if scale is None else x.shape[1]
    return torch.empty_like(x), wide(x, c), wide(x, c)


def _stats_setup(ctx, inputs, output):
    x, scale, shift, relu = inputs
    ctx.save_for_backward(x, output[1], scale, shift)
    ctx.relu = relu
    ctx.mark_non_differentiable(output[0])


def _stats_backward(ctx, _, grad_mean, grad_m2):
    x, mean, scale, shift = ctx.saved_tensors
    if torch.is_grad_enabled():
        args = (x, scale, shift, ctx.relu)
        return tuple(recorded_gradients(reference.bn_stats, args, (None, grad_mean, grad_m2)))
    dx, da, db = _bn_stats_backward(grad_mean, grad_m2, x, mean, scale, shift, ctx.relu)
    return dx, undefined(da), undefined(db), None


def _list_fake(x, scale, shift, relu):
    return fake_stats(x[0], True, x[0].shape[1])


def _list_setup(ctx, inputs, output):
    x, scale, shift, relu = inputs
    ctx.save_for_backward(*x, output[1], scale, shift)
    ctx.relu = relu
    ctx.mark_non_differentiable(output[0])


def _list_backward(ctx, _, grad_mean, grad_m2):
    *x, mean, scale, shift = ctx.saved_tensors
    if torch.is_grad_enabled():
        args = (x, scale, shift, ctx.relu)
        return tuple(recorded_gradients(reference.bn_stats, args, (None, grad_mean, grad_m2)))
    pixels = [t.shape[0] * t.shape[2] * t.shape[3] for t in x]
    total = max(sum(pixels), 1)
    grads, vectors = [], []
    for t, n in zip(x, pixels, strict=True):
        dx, *affine = _bn_stats_backward(
            grad_mean * (n / total), grad_m2, t, mean, scale, shift, ctx.relu
        )
        grads.append(dx)
        vectors.append(affine)
    return grads, *(undefined(sum(parts)) for parts in zip(*vectors, strict=True)), None


def _fold_fake(count, mean, m2, gamma, beta, eps):
    return torch.empty_like(mean), torch.empty_like(mean)


def _fold_backward_fake(grad_scale, grad_shift, count, mean, m2, gamma, eps):
    return tuple(torch.empty_like(mean) for _ in range(4))


def _fold_reference(count, mean, m2, gamma, beta, eps):
    return reference.bn_fold(BNStats(count, mean, m2), gamma, beta, eps)


def _fold_setup(ctx, inputs, output):
    count, mean, m2, gamma, beta, eps = inputs
    ctx.save_for_backward(count, mean, m2, gamma, beta)
    ctx.eps = eps


def _fold_backward(ctx, grad_scale, grad_shift):
    count, mean, m2, gamma, beta = ctx.saved_tensors
    if torch.is_grad_enabled():
        args = (count, mean, m2, gamma, beta, ctx.eps)
        return tuple(recorded_gradients(_fold_reference, args, (grad_scale, grad_shift)))
    d_mean, d_m2, d_gamma, d_beta = _bn_fold_backward(
        grad_scale, grad_shift, count, mean, m2, gamma, ctx.eps
    )
    d_gamma = None if gamma is None else d_gamma.to(gamma.dtype)
    d_beta = None if beta is None else d_beta.to(beta.dtype)
    return None, d_mean, d_m2, d_gamma, d_beta, None


if has_extension():
    register_fake("bn_stats", _stats_fake)
    register_fake("bn_stats_list", _list_fake)
    register_fake("bn_stats_backward", _stats_backward_fake)
    register_fake("bn_fold", _fold_fake)
    register_fake("bn_fold_backward", _fold_backward_fake)
    _bn_stats_backward, _bn_fold_backward = (
        operator("bn_stats_backward"),
        operator("bn_fold_backward"),
    )
    _bn_stats = differentiable("bn_stats", _stats_setup, _stats_backward)
    _bn_stats_list = differentiable("bn_stats_list", _list_setup, _list_backward)
    _bn_fold = differentiable("bn_fold", _fold_setup, _fold_backward)
