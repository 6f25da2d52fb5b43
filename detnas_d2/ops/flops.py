"""Floating-point operations of the operators, for ``torch.utils.flop_counter``.

As PyTorch's own formulas: two per multiply-add of a convolution; pending affine maps, statistics
and weighted sums, which are elementwise, are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from detnas_d2.ops.extension import has_extension

Shape = Sequence[int]


def convolution(out: Shape, weight: Shape) -> int:
    """Of a convolution with this output (N, C, H, W) and weight (C, C / groups, k, k)."""
    return 2 * out[0] * out[2] * out[3] * prod(weight)


def strided(x: Shape, stride: int) -> Shape:
    """The shape of a convolution's output, but for its channels."""
    return (*x[:2], -(-x[2] // stride), -(-x[3] // stride))


def pointwise_conv(x: Shape, weight: Shape, *args: object, **_: object) -> int:
    return convolution(x, weight)


def conv3x3_packed(x: Sequence[Shape], weight: Shape, *args: object, **_: object) -> int:
    return sum(convolution(one, weight) for one in x)


def depthwise_conv(x: Shape, weight: Shape, *args: Any, **_: object) -> int:
    return convolution(strided(x, args[-2]), weight)


def depthwise_conv_bn(x: Shape, weight: Shape, *args: Any, **_: object) -> int:
    return convolution(strided(x, args[4]), weight)


def mixed_depthwise(x: Sequence[Shape], weight: Sequence[Shape], *args: Any, **_: object) -> int:
    return sum(convolution(strided(a, args[-2]), w) for a, w in zip(x, weight, strict=True))


def conv_backward(
    grad_y: Shape, grad_mean: object, grad_m2: object, x: Shape, weight: Shape, *args: Any,
    **_: object,
) -> int:  # fmt: skip
    """As often as gradients of the input and of the weight are asked for."""
    return sum(args[-1][:2]) * convolution(grad_y, weight)


def mixed_depthwise_backward(
    grad_y: Sequence[Shape], grad_mean: object, grad_m2: object, x: object,
    weight: Sequence[Shape], *args: object, **_: object,
) -> int:  # fmt: skip
    return sum(2 * convolution(g, w) for g, w in zip(grad_y, weight, strict=True))


def block(x: Shape, weights: Sequence[Shape], kernel: int, stride: int) -> int:
    """Of all convolutions of a block; the first one at the output's size is a depthwise one."""
    main = 6 if kernel == 0 else 3
    total = 0
    for layers in (weights[:main], weights[main:]):
        out = x
        for weight in layers:
            if weight[-1] > 1 and out is x:
                out = strided(x, stride)
            total += convolution(out, weight)
    return total


def shuffle_block(
    x: Shape, weights: Sequence[Shape], biases: object, kernel: int, stride: int, *args: object,
    **_: object,
) -> int:  # fmt: skip
    return block(x, weights, kernel, stride)


def shuffle_block_packed(
    x: Shape, right: object, weights: Sequence[Shape], packed: object, biases: object, kernel: int,
    stride: int, *args: object, **_: object,
) -> int:  # fmt: skip
    return block(x, weights, kernel, stride)


def shuffle_block_stats(left: Shape, *args: Any, **_: object) -> int:
    weights, (kernel, stride) = args[4], args[8:10]
    return block(left, weights, kernel, stride)


def shuffle_block_training_backward(
    grad_left: Shape, grad_right: object, left: Shape, *args: Any, **_: object
) -> int:
    """As often as gradients of a layer's input and of its weight are asked for."""
    weights, kernel, stride, wanted = args[4], args[8], args[9], args[12]
    main, total = 6 if kernel == 0 else 3, 0
    for branch in (range(main), range(main, len(weights))):
        x, before = left, wanted[1] if stride == 1 else any(wanted[:4])
        for i in branch:
            if weights[i][-1] > 1 and x is left:
                x = strided(x, stride)
            total += (before + wanted[4 + i]) * convolution(x, weights[i])
            before = before or any(wanted[4 + i :: len(weights)])
    return total


def shuffle_blocks_stats(x: Shape, *args: Any, **_: object) -> int:
    weights, kernels, strides = args[3], args[8], args[9]
    total, first = 0, 0
    for kernel, stride in zip(kernels, strides, strict=True):
        end = first + (6 if kernel == 0 else 3) + 2 * (stride == 2)
        total += block(x, weights[first:end], kernel, stride)
        x, first = strided(x, stride), end
    return total


if has_extension():
    for _name, _formula in (
        ("pointwise_conv", pointwise_conv),
        ("pointwise_conv_bn", pointwise_conv),
        ("depthwise_conv", depthwise_conv),
        ("depthwise_conv_bn", depthwise_conv_bn),
        ("conv3x3", pointwise_conv),
        ("conv3x3_packed", conv3x3_packed),
        ("mixed_depthwise", mixed_depthwise),
        ("pointwise_conv_backward", conv_backward),
        ("depthwise_conv_backward", conv_backward),
        ("mixed_depthwise_backward", mixed_depthwise_backward),
        ("shuffle_block", shuffle_block),
        ("shuffle_block_packed", shuffle_block_packed),
        ("shuffle_block_stats", shuffle_block_stats),
        ("shuffle_blocks_stats", shuffle_blocks_stats),
        ("shuffle_block_training_backward", shuffle_block_training_backward),
    ):
        register_flop_formula(getattr(torch.ops.detnas_d2, _name))(_formula)
