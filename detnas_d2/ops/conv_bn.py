"""Maps and convolutions with the BatchNorm that follows them, with the statistics of its batch.

What :func:`bn_stats` or a convolution with ``want_stats``, and then :func:`bn_fold`, give, to the
bit: on CUDA in the launch of the first, the last block of which has all statistics.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detnas_d2.ops import reference
from detnas_d2.ops.conv import conv_gradients, out_size
from detnas_d2.ops.extension import has_extension
from detnas_d2.ops.reference import BNStats
from detnas_d2.ops.registration import (
    by_reference,
    channels_last,
    differentiable,
    fake_stats,
    lower,
    operator,
    recorded_gradients,
    register_autocast,
    register_fake,
    takes,
    undefined,
    vectors,
)


def bn_stats_fold(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    batches: int = 1,
) -> tuple[BNStats, Tensor, Tensor]:
    """The statistics of a map, and the affine map of a BatchNorm with them.

    Args:
        x, scale, shift, relu: as for :func:`bn_stats`, a single map.
        gamma, beta: weight and bias (C) of the BatchNorm, or None.
        batches: of how many batches of one size the N images are, one after the other. Each is
            normalised by itself, with the results of a call of its own, to the bit: where there
            are several, scale, shift, mean, m2 are (batches, C); count is that of one. On CUDA all
            are one launch. Gradients of several are the reference's.

    Returns:
        :func:`bn_stats`; scale and shift (C) of :func:`bn_fold`.

    Raises:
        RuntimeError: an argument has another shape, dtype or device than it should.
    """
    args = (x, scale, shift, relu, gamma, beta, eps, batches)
    if not takes(x):
        return by_reference("bn_stats_fold", reference.bn_stats_fold, *args)
    count, mean, m2, *affine = _CALLS["bn_stats_fold"](*args)
    return BNStats(count, mean, m2), *affine


def pointwise_conv_bn(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    bias: Tensor | None = None,
    groups: int = 1,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    batches: int = 1,
) -> tuple[Tensor, BNStats, Tensor, Tensor]:
    """A 1x1 convolution, the statistics of its output, and the affine map of a BatchNorm with them.

    Args:
        x, weight, scale, shift, relu, bias, groups: as for :func:`pointwise_conv`.
        gamma, beta: weight and bias (out_channels) of the BatchNorm, or None.
        batches: as for :func:`bn_stats_fold`.

    Returns:
        :func:`pointwise_conv` with ``want_stats``; scale and shift (out_channels) of
        :func:`bn_fold`, pending on y.

    Raises:
        RuntimeError: an argument has another shape, dtype or device than it should.
    """
    args = (x, weight, scale, shift, relu, bias, groups, gamma, beta, eps, batches)
    if not takes(x):
        return by_reference("pointwise_conv_bn", reference.pointwise_conv_bn, *args)
    y, count, mean, m2, *affine = _CALLS["pointwise_conv_bn"](*args)
    return y, BNStats(count, mean, m2), *affine


def depthwise_conv_bn(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    bias: Tensor | None = None,
    stride: int = 1,
    dilation: int = 1,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    batches: int = 1,
) -> tuple[Tensor, BNStats, Tensor, Tensor]:
    """The same of a depthwise convolution.

    Args:
        x, weight, scale, shift, relu, bias, stride, dilation: as for :func:`depthwise_conv`.
        others: as for :func:`pointwise_conv_bn`.

    Returns:
        :func:`depthwise_conv` with ``want_stats``; scale and shift (C) of :func:`bn_fold`.

    Raises:
        RuntimeError: an argument has another shape, dtype or device than it should.
    """
    args = (x, weight, scale, shift, relu, bias, stride, dilation, gamma, beta, eps, batches)
    if not takes(x):
        return by_reference("depthwise_conv_bn", reference.depthwise_conv_bn, *args)
    y, count, mean, m2, *affine = _CALLS["depthwise_conv_bn"](*args)
    return y, BNStats(count, mean, m2), *affine


def _norm_fake(x, channels, batches):
    return *fake_stats(x, True, channels, batches), *(vectors(x, channels, batches) for _ in "ab")


def _stats_fake(x, scale, shift, relu, gamma, beta, eps, batches=1):
    return _norm_fake(x, x.shape[1], batches)


def _pointwise_fake(x, weight, scale, shift, relu, bias, groups, gamma, beta, eps, batches=1):
    c = weight.shape[0]
    return channels_last(x, x.shape[0], c, *x.shape[2:]), *_norm_fake(x, c, batches)


def _depthwise_fake(
    x, weight, scale, shift, relu, bias, stride, dilation, gamma, beta, eps, batches=1
):
    n, c, h, w = x.shape
    y = channels_last(x, n, c, out_size(h, stride), out_size(w, stride))
    return y, *_norm_fake(x, c, batches)


def _through_fold(ctx, stats, gamma, beta, grad_mean, grad_m2, grad_scale, grad_shift):
    """Gradients of mean and m2, those through the affine map included, of gamma and of beta."""
    if grad_scale is None and grad_shift is None:
        return grad_mean, grad_m2, None, None
    d_mean, d_m2, d_gamma, d_beta = _bn_fold_backward(
        torch.zeros_like(stats.mean) if grad_scale is None else grad_scale,
        torch.zeros_like(stats.mean) if grad_shift is None else grad_shift,
        *stats,
        gamma,
        ctx.eps,
    )
    return (
        d_mean if grad_mean is None else d_mean + grad_mean,
        d_m2 if grad_m2 is None else d_m2 + grad_m2,
        None if gamma is None else d_gamma.to(gamma.dtype),
        None if beta is None else d_beta.to(beta.dtype),
    )


def _stats_setup(ctx, inputs, output):
    x, scale, shift, relu, gamma, beta, eps, ctx.batches = inputs
    ctx.mark_non_differentiable(output[0])
    ctx.save_for_backward(x, scale, shift, gamma, beta, *output[:3])
    ctx.relu, ctx.eps = relu, eps
    ctx.set_materialize_grads(False)


def _stats_backward(ctx, _, *grads):
    x, scale, shift, gamma, beta, *stats = ctx.saved_tensors
    if all(grad is None for grad in grads):
        return (None,) * 8
    if torch.is_grad_enabled() or ctx.batches > 1:
        args = (x, scale, shift, ctx.relu, gamma, beta, ctx.eps, ctx.batches)
        return tuple(recorded_gradients(reference.bn_stats_fold, args, (None, *grads)))
    stats = BNStats(*stats)
    grad_mean, grad_m2, d_gamma, d_beta = _through_fold(ctx, stats, gamma, beta, *grads)
    zero = torch.zeros_like(stats.mean)
    dx, da, db = _bn_stats_backward(
        zero if grad_mean is None else grad_mean,
        zero if grad_m2 is None else grad_m2,
        x, stats.mean, scale, shift, ctx.relu,
    )  # fmt: skip
    return dx, undefined(da), undefined(db), None, d_gamma, d_beta, None, None


def _conv_setup(ctx, inputs, output):
    x, weight, scale, shift, relu, bias, *geometry, gamma, beta, eps, ctx.batches = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, scale, shift, bias, gamma, beta, *output[:4])
    ctx.relu, ctx.geometry, ctx.eps = relu, geometry, eps
    ctx.set_materialize_grads(False)


def _make_backward(op: str) -> Callable:
    overload = operator(f"{op}_backward")

    def backward(ctx, grad_y, _, *grads):
        x, weight, scale, shift, bias, gamma, beta, y, *stats = ctx.saved_tensors
        geometry = ctx.geometry
        if grad_y is None and all(grad is None for grad in grads):
            return (None,) * (10 + len(geometry))
        if torch.is_grad_enabled() or ctx.batches > 1:
            norm = (gamma, beta, ctx.eps, ctx.batches)
            args = (x, weight, scale, shift, ctx.relu, bias, *geometry, *norm)
            of = getattr(reference, f"{op}_bn")
            return tuple(recorded_gradients(of, args, (grad_y, None, *grads)))
        stats = BNStats(*stats)
        grad_mean, grad_m2, d_gamma, d_beta = _through_fold(ctx, stats, gamma, beta, *grads)
        dx, dw, da, db, dbias = conv_gradients(
            overload, ctx.needs_input_grad, grad_y, grad_mean, grad_m2, x, weight, scale, shift,
            ctx.relu, bias, y, stats.mean, False, geometry,
        )  # fmt: skip
        rest = (None,) * len(geometry)
        return dx, dw, da, db, None, dbias, *rest, d_gamma, d_beta, None, None

    return backward


_CALLS: dict[str, Callable] = {}

for _name in ("pointwise_conv_bn", "depthwise_conv_bn"):
    register_autocast(_name, lambda dtype, x, w, *rest: (lower(x, dtype), lower(w, dtype), *rest))
if has_extension():
    _bn_stats_backward = operator("bn_stats_backward")
    _bn_fold_backward = operator("bn_fold_backward")
    register_fake("bn_stats_fold", _stats_fake)
    _CALLS["bn_stats_fold"] = differentiable("bn_stats_fold", _stats_setup, _stats_backward)
    for _name, _fake in (("pointwise_conv", _pointwise_fake), ("depthwise_conv", _depthwise_fake)):
        register_fake(f"{_name}_bn", _fake)
        _CALLS[f"{_name}_bn"] = differentiable(f"{_name}_bn", _conv_setup, _make_backward(_name))
