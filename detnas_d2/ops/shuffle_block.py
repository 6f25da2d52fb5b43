"""A whole ShuffleNetV2 block in eval mode, BatchNorms folded into weights and biases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detnas_d2.ops import reference
from detnas_d2.ops.extension import has_extension
from detnas_d2.ops.registration import channels_last, compiled, lower, register_autocast


def shuffle_block(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    kernel: int,
    stride: int,
    method: int,
) -> Tensor:
    """The block of :class:`detnas_d2.layers.ShuffleBlock`, convolutions given in order.

    Depthwise convolutions are followed by nothing, 1x1 convolutions by ReLU. Not differentiable.

    Args:
        x: (N, C, H, W).
        weights, biases: of the main branch (1x1, depthwise, 1x1; for xception three times
            depthwise, 1x1), then, at stride 2, of the projection (depthwise, 1x1).
        kernel: 3, 5, 7, or 0 for xception. method: channel shuffle at stride 1, 1 or 2.

    Returns:
        stride 1: cat(left half of the shuffled input, main branch of the right half);
        stride 2: cat(projection, main branch). channels_last.
    """
    if not compiled(x):
        return reference.shuffle_block(x, weights, biases, kernel, stride, method)
    return torch.ops.detnas_d2.shuffle_block(x, list(weights), list(biases), kernel, stride, method)


def _fake(x, weights, biases, kernel, stride, method):
    n, c, h, w = x.shape
    main = weights[5 if kernel == 0 else 2].shape[0]
    size = (-(-h // stride), -(-w // stride))
    return channels_last(x, n, main + (c // 2 if stride == 1 else c), *size)


if has_extension():
    torch.library.register_fake("detnas_d2::shuffle_block", _fake)
    register_autocast(
        "shuffle_block",
        lambda dtype, x, weights, *rest: (
            lower(x, dtype),
            [lower(w, dtype) for w in weights],
            *rest,
        ),
    )
