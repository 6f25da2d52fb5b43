"""1x1 and depthwise convolutions that take and leave BatchNorms as pending affine maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from detnas_d2.ops import reference
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
    wide,
)


def pointwise_conv(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    bias: Tensor | None = None,
    out_relu: bool = False,
    want_stats: bool = False,
    groups: int = 1,
) -> tuple[Tensor, BNStats | None]:
    """1x1 convolution of relu?(scale * x + shift), and statistics of its raw output.

    Args:
        x: (N, C, H, W). channels_last, a range of channels of such a tensor, or every second
            channel of one are read in place; anything else is converted once.
        weight: (out_channels, C / groups, 1, 1), dtype of x.
        scale, shift: the affine map (C) pending on x, both or neither; relu: ReLU after it.
        bias: (out_channels); out_relu: ReLU of the output.
        want_stats: also return the output's statistics (before rounding to x's dtype).

    Returns:
        y (N, out_channels, H, W) channels_last, and its :class:`BNStats` or None.

    On the tensor cores of a GPU an affine map without ReLU moves into the weights: w * scale is
    rounded, not scale * x + shift. Beyond its own rounding and that of sums in float32, an output
    is off by at most u * sum_c |w_c scale_c x_c|, u being 2^-8 for bfloat16, 2^-11 for float16 and
    2^-10 for TF32: of channels whose mean is large beside their deviation more than otherwise.

    Raises:
        RuntimeError: an argument has another shape, dtype or device than it should, or statistics
            are wanted with ``out_relu``.
    """
    args = (x, weight, scale, shift, relu, bias, out_relu, want_stats, groups)
    if not takes(x):
        return by_reference("pointwise_conv", reference.pointwise_conv, *args)
    y, *stats = _CALLS["pointwise_conv"](*args)
    return y, BNStats(*stats) if want_stats else None


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    bias: Tensor | None = None,
    out_relu: bool = False,
    want_stats: bool = False,
    stride: int = 1,
    dilation: int = 1,
) -> tuple[Tensor, BNStats | None]:
    """Depthwise convolution, zero-padded after the affine map to keep the size at stride 1.

    Args:
        weight: (C, 1, k, k), k 3, 5 or 7. stride 1 or 2; dilation 1, 2 or 3.
        others: see :func:`pointwise_conv`.

    Returns:
        y (N, C, ceil(H / stride), ceil(W / stride)) channels_last, and its :class:`BNStats`.

    Raises:
        RuntimeError: see :func:`pointwise_conv`.
    """
    args = (x, weight, scale, shift, relu, bias, out_relu, want_stats, stride, dilation)
    if not takes(x):
        return by_reference("depthwise_conv", reference.depthwise_conv, *args)
    y, *stats = _CALLS["depthwise_conv"](*args)
    return y, BNStats(*stats) if want_stats else None


def mixed_depthwise(
    x: Sequence[Tensor],
    weight: Sequence[Tensor],
    scale: Sequence[Tensor] = (),
    shift: Sequence[Tensor] = (),
    relu: bool = False,
    want_stats: bool = False,
    stride: int = 1,
    dilation: Sequence[int] = (),
) -> tuple[list[Tensor], list[BNStats | None]]:
    """Depthwise convolutions of different kernel size and dilation, one per input, in one call.

    Args:
        x, weight: lists as for :func:`depthwise_conv`; channels may differ.
        scale, shift: one vector per input, or empty. dilation: one per input; empty: all 1.

    Returns:
        outputs, and the :class:`BNStats` of each (or None).

    Raises:
        RuntimeError: see :func:`pointwise_conv`; lists of different lengths.
    """
    dilation = list(dilation) or [1] * len(x)
    lists = (list(x), list(weight), list(scale), list(shift))
    args = (*lists, relu, want_stats, stride, dilation)
    if not x:
        return [], []
    if not takes(x[0]):
        return by_reference("mixed_depthwise", reference.mixed_depthwise, *args)
    ys, *stats = _CALLS["mixed_depthwise"](*args)
    return list(ys), [BNStats(*s) if want_stats else None for s in zip(*stats, strict=True)]


def out_size(size: int | torch.SymInt, stride: int) -> int | torch.SymInt:
    """Height or width of the output of a convolution that keeps it at stride 1."""
    return (size + stride - 1) // stride


def _pointwise_fake(x, weight, scale, shift, relu, bias, out_relu, want_stats, groups):
    y = channels_last(x, x.shape[0], weight.shape[0], x.shape[2], x.shape[3])
    return y, *fake_stats(x, want_stats, weight.shape[0])


def _depthwise_fake(x, weight, scale, shift, relu, bias, out_relu, want_stats, stride, dilation):
    n, c, h, w = x.shape
    y = channels_last(x, n, c, out_size(h, stride), out_size(w, stride))
    return y, *fake_stats(x, want_stats, c)


def _mixed_fake(x, weight, scale, shift, relu, want_stats, stride, dilation):
    outs = [
        _depthwise_fake(t, w, None, None, relu, None, False, want_stats, stride, d)
        for t, w, d in zip(x, weight, dilation, strict=True)
    ]
    return tuple(list(column) for column in zip(*outs, strict=True))


def _mixed_backward_fake(
    grad_y, grad_mean, grad_m2, x, weight, scale, shift, relu, y, mean, stride, dilation
):
    dw = [torch.empty_like(w, memory_format=torch.contiguous_format) for w in weight]
    da, db = ([wide(t, t.shape[1]) for t, _ in zip(x, scale, strict=False)] for _ in range(2))
    return [channels_last(t, *t.shape) for t in x], dw, da, db


def _backward_fake(
    grad_y, grad_mean, grad_m2, x, weight, scale, shift, relu, y, mean, out_relu, *rest
):
    mask = rest[-1]
    c = x.shape[1]
    affine = mask[0] and scale is not None
    return (
        channels_last(x, *x.shape) if mask[0] else wide(x, 0),
        torch.empty_like(weight, memory_format=torch.contiguous_format) if mask[1] else wide(x, 0),
        wide(x, c if affine else 0),
        wide(x, c if affine else 0),
        wide(x, grad_y.shape[1] if mask[2] else 0),
    )


def _setup(ctx, inputs, output):
    x, weight, scale, shift, relu, bias, out_relu, want_stats, *geometry = inputs
    y, count, mean, m2 = output
    ctx.mark_non_differentiable(count, *(() if want_stats else (mean, m2)))
    y = y if want_stats or out_relu else None
    ctx.save_for_backward(x, weight, scale, shift, bias, y, mean if want_stats else None)
    ctx.relu, ctx.out_relu, ctx.want_stats, ctx.geometry = relu, out_relu, want_stats, geometry
    ctx.set_materialize_grads(False)


def _make_backward(op: str) -> Callable:
    overload = operator(f"{op}_backward")

    def backward(ctx, grad_y, _, grad_mean, grad_m2):
        x, weight, scale, shift, bias, y, mean = ctx.saved_tensors
        if grad_y is None and grad_mean is None and grad_m2 is None:
            return (None,) * (8 + len(ctx.geometry))
        if torch.is_grad_enabled():
            args = (x, weight, scale, shift, ctx.relu, bias, ctx.out_relu, ctx.want_stats)
            grads = (grad_y, None, grad_mean, grad_m2)
            of = getattr(reference, op)
            return tuple(recorded_gradients(of, (*args, *ctx.geometry), grads))
        dx, dw, da, db, dbias = conv_gradients(
            overload, ctx.needs_input_grad, grad_y, grad_mean, grad_m2, x, weight, scale, shift,
            ctx.relu, bias, y, mean, ctx.out_relu, ctx.geometry,
        )  # fmt: skip
        return dx, dw, da, db, None, dbias, *(None,) * (2 + len(ctx.geometry))

    return backward


def conv_gradients(
    overload, need, grad_y, grad_mean, grad_m2, x, weight, scale, shift, relu, bias, y, mean,
    out_relu, geometry,
):  # fmt: skip
    """Gradients of x, weight, scale, shift and bias, None where ``need``, of the operator's
    arguments in order, says that nobody wants them."""
    if grad_y is None:
        grad_y = torch.zeros_like(y)
    if grad_mean is not None or grad_m2 is not None:
        grad_mean = torch.zeros_like(mean) if grad_mean is None else grad_mean
        grad_m2 = torch.zeros_like(mean) if grad_m2 is None else grad_m2
    mask = [need[0] or need[2] or need[3], need[1], need[5]]
    dx, dw, da, db, dbias = overload(
        grad_y, grad_mean, grad_m2, x, weight, scale, shift, relu, y, mean, out_relu, *geometry,
        mask,
    )  # fmt: skip
    affine = scale is not None and mask[0]
    return (
        dx if mask[0] else None,
        dw if mask[1] else None,
        da.to(scale.dtype) if affine else None,
        db.to(shift.dtype) if affine else None,
        dbias.to(bias.dtype) if mask[2] else None,
    )


def _mixed_reference(*args):
    ys, stats = reference.mixed_depthwise(*args)
    return ys, *([] if None in stats else map(list, zip(*stats, strict=True)))


def _mixed_setup(ctx, inputs, output):
    x, weight, scale, shift, relu, want_stats, stride, dilation = inputs
    ys, counts, means, m2s = output
    ctx.mark_non_differentiable(*counts, *(() if want_stats else (*means, *m2s)))
    ctx.count, ctx.affine, ctx.want_stats = len(x), len(scale) > 0, want_stats
    ctx.relu, ctx.stride, ctx.dilation = relu, stride, list(dilation)
    ctx.save_for_backward(*x, *weight, *scale, *shift, *((*ys, *means) if want_stats else ()))
    ctx.set_materialize_grads(False)


def _mixed_backward(ctx, grad_ys, _, grad_means, grad_m2s):
    n, saved = ctx.count, list(ctx.saved_tensors)
    take = lambda have: [saved.pop(0) for _ in range(n)] if have else []  # noqa: E731
    x, weight, scale, shift = take(True), take(True), take(ctx.affine), take(ctx.affine)
    y, mean = take(ctx.want_stats), take(ctx.want_stats)
    if torch.is_grad_enabled():
        args = (x, weight, scale, shift, ctx.relu, ctx.want_stats, ctx.stride, ctx.dilation)
        grads = (*grad_ys, *(None for _ in grad_ys), *grad_means, *grad_m2s)
        return *recorded_gradients(_mixed_reference, args, grads)[:4], None, None, None, None
    if ctx.want_stats and any(g is not None for g in (*grad_means, *grad_m2s)):
        grad_means, grad_m2s = (
            [torch.zeros_like(m) if g is None else g for g, m in zip(grads, mean, strict=True)]
            for grads in (grad_means, grad_m2s)
        )
    else:
        grad_means = grad_m2s = y = mean = []
    grad_ys = list(grad_ys)
    for i, t in enumerate(x):
        if grad_ys[i] is None:
            size = [out_size(s, ctx.stride) for s in t.shape[2:]]
            grad_ys[i] = t.new_zeros((*t.shape[:2], *size))
    dx, dw, da, db = _mixed_depthwise_backward(
        grad_ys, grad_means, grad_m2s, x, weight, scale, shift, ctx.relu, y, mean, ctx.stride,
        ctx.dilation,
    )  # fmt: skip
    return dx, dw, da, db, None, None, None, None


_CALLS: dict[str, Callable] = {}

for _name in ("pointwise_conv", "depthwise_conv"):
    register_autocast(_name, lambda dtype, x, w, *rest: (lower(x, dtype), lower(w, dtype), *rest))
register_autocast(
    "mixed_depthwise",
    lambda dtype, x, w, *rest: ([lower(t, dtype) for t in x], [lower(t, dtype) for t in w], *rest),
)
if has_extension():
    for _name, _fake in (("pointwise_conv", _pointwise_fake), ("depthwise_conv", _depthwise_fake)):
        register_fake(_name, _fake)
        register_fake(f"{_name}_backward", _backward_fake)
        _CALLS[_name] = differentiable(_name, _setup, _make_backward(_name))
    register_fake("mixed_depthwise", _mixed_fake)
    register_fake("mixed_depthwise_backward", _mixed_backward_fake)
    _mixed_depthwise_backward = operator("mixed_depthwise_backward")
    _CALLS["mixed_depthwise"] = differentiable("mixed_depthwise", _mixed_setup, _mixed_backward)
