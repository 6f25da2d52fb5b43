"""Affine map, ReLU, concatenation, channel shuffle and split in one pass."""

from __future__ import annotations

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
    undefined,
    wide,
)


def shuffle_concat(
    left: Tensor,
    right: Tensor,
    left_scale: Tensor | None = None,
    left_shift: Tensor | None = None,
    right_scale: Tensor | None = None,
    right_shift: Tensor | None = None,
    left_relu: bool = False,
    right_relu: bool = False,
    method: int = 0,
    split: bool = False,
    batches: int = 1,
) -> tuple[Tensor, Tensor] | Tensor:
    """Shuffled concatenation of two maps, each read through its pending affine map and ReLU.

    Args:
        left, right: (N, C1, H, W) and (N, C2, H, W); halves of channels_last maps and every second
            channel of one are read in place.
        method: 0 none; 1 interleaves the halves (0, C/2, 1, ...); 2 even channels, then odd ones.
        split: return the two halves of the result as maps of their own.
        batches: of how many batches the N images are, each with affine maps (batches, C) of its
            own; see :func:`detnas_d2.ops.bn_stats_fold`.

    Returns:
        (N, C1 + C2, H, W) channels_last, or its halves.

    Raises:
        RuntimeError: an argument has another shape, dtype or device than it should.
    """
    if left.dtype != right.dtype:  # under autocast; as torch.cat
        dtype = torch.promote_types(left.dtype, right.dtype)
        left, right = left.to(dtype), right.to(dtype)
    args = (
        left, right, left_scale, left_shift, right_scale, right_shift, left_relu, right_relu,
        method, split, batches,
    )  # fmt: skip
    if not takes(left):
        return by_reference("shuffle_concat", reference.shuffle_concat, *args)
    a, b = _shuffle_concat(*args)
    return (a, b) if split else a


def _fake(left, right, ls, lb, rs, rb, left_relu, right_relu, method, split, batches=1):
    n, c, h, w = left.shape
    c = c + right.shape[1]
    if not split:
        return channels_last(left, n, c, h, w), left.new_empty(0)
    return channels_last(left, n, c // 2, h, w), channels_last(left, n, c - c // 2, h, w)


def _backward_fake(ga, gb, left, right, ls, lb, rs, rb, left_relu, right_relu, method, split):
    cl, cr = (0 if s is None else t.shape[1] for s, t in ((ls, left), (rs, right)))
    grads = (channels_last(left, *left.shape), channels_last(right, *right.shape))
    return *grads, wide(left, cl), wide(left, cl), wide(left, cr), wide(left, cr)


def _setup(ctx, inputs, output):
    left, right, ls, lb, rs, rb, *ctx.rest, ctx.batches = inputs
    ctx.save_for_backward(left, right, ls, lb, rs, rb)


def _backward(ctx, grad_a, grad_b):
    if torch.is_grad_enabled() or ctx.batches > 1:
        args = (*ctx.saved_tensors, *ctx.rest, ctx.batches)
        return tuple(recorded_gradients(reference.shuffle_concat, args, (grad_a, grad_b)))
    dl, dr, *vectors = _shuffle_concat_backward(grad_a, grad_b, *ctx.saved_tensors, *ctx.rest)
    return dl, dr, *(undefined(v) for v in vectors), *(None,) * 5


if has_extension():
    register_fake("shuffle_concat", _fake)
    register_fake("shuffle_concat_backward", _backward_fake)
    _shuffle_concat_backward = operator("shuffle_concat_backward")
    _shuffle_concat = differentiable("shuffle_concat", _setup, _backward)
