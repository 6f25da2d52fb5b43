"""Blocks in evaluation: to the bit their convolutions one by one, and between halves those between
whole maps."""

from __future__ import annotations

import torch
from torch import Tensor

from detnas_d2 import ops
from detnas_d2.ops import reference
from detnas_d2.ops.shuffle_block import PackedBlock, out_methods, shuffle_blocks
from tests.ops.compare import block, channels_last, tensors

# Of which products on CUDA make tiles of every size.
WIDE = ((1, 256, 13, 11), (1, 320, 13, 11))
# Maps and strides, of which depthwise convolutions with the product behind them do.
SEPARABLE = (
    ((1, 16, 9, 11), 1),
    ((1, 16, 33, 21), 1),
    ((1, 160, 17, 19), 1),
    ((1, 32, 17, 19), 2),
    ((1, 96, 17, 19), 2),
)


def make(
    channels: int, kernel: int, stride: int, more: int, like: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of a block; ``more``: output channels of the main branch beside those
    that the other one has."""
    weights, biases = block(channels, kernel, stride)
    last = 5 if kernel == 0 else 2
    out, inputs = weights[last].shape[:2]
    weights[last], biases[last] = torch.randn(out + more, inputs, 1, 1), torch.randn(out + more)
    return [w.to(like) for w in weights], [b.to(like.device) for b in biases]


def one_by_one(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    kernel: int,
    stride: int,
    method: int,
) -> Tensor:
    """``shuffle_block`` by an operator for each convolution."""
    main = 6 if kernel == 0 else 3

    def branch(z: Tensor, first: int, end: int) -> Tensor:
        s = stride
        for w, b in zip(weights[first:end], biases[first:end], strict=True):
            if w.shape[-1] > 1:
                z = ops.depthwise_conv(z, w, bias=b, stride=s)[0]
                s = 1
            else:
                z = ops.pointwise_conv(z, w, bias=b, out_relu=True)[0]
        return z

    left, right = (x, x) if stride == 2 else reference.shuffle(x, method).chunk(2, 1)
    left = branch(left, main, len(weights))
    return channels_last(torch.cat((left, branch(channels_last(right), 0, main)), 1))


@torch.no_grad()
def check_alone(x: Tensor, kernel: int, stride: int) -> None:
    args = (*make(x.shape[1], kernel, stride, 0, x), kernel, stride, 1)
    expected, found = one_by_one(x, *args), ops.shuffle_block(x, *args)
    assert torch.equal(found, expected), f"{tuple(x.shape)}, {kernel}, {stride}"


@torch.no_grad()
def check(x: Tensor, kernel: int, stride: int, more: int = 0) -> None:
    """One block, for all shuffles of its input and output."""
    weights, biases = make(x.shape[1], kernel, stride, more, x)
    for method in (1, 2):
        whole = ops.shuffle_block(x, weights, biases, kernel, stride, method)
        inputs = [(x, None)]
        if stride == 1:
            left, right = reference.shuffle(x, method).chunk(2, 1)
            inputs.append((left, channels_last(right)))
        for out_method in (0, 1, 2) if whole.shape[1] % 2 == 0 else (0,):
            expected = reference.shuffle(whole, out_method).chunk(2 if out_method else 1, 1)
            packed = ops.pack_shuffle_block(weights, kernel, stride, out_method)
            args = (weights, biases, kernel, stride, method, packed)
            for left, right in inputs:
                found = tensors(ops.shuffle_block(left, *args, right, out_method))
                for y, e in zip(found, expected, strict=True):
                    where = f"{tuple(x.shape)}, {args[2:5]}, {out_method}, {more} more"
                    assert torch.equal(y, e), where


@torch.no_grad()
def check_many(x: Tensor) -> None:
    """Several blocks, of both strides and shuffles, by one call."""
    strides, kernels, methods = (1, 2, 1, 1, 2, 1), (5, 3, 0, 7, 0, 3), (2, 1, 1, 2, 2, 1)
    for ends in ([6], [1, 3, 6]):
        blocks, wanted, y = [], [], x
        outs = out_methods(strides, methods, ends)
        for i, options in enumerate(zip(kernels, strides, methods, strict=True)):
            kernel, stride, method = options
            weights, biases = make(y.shape[1], kernel, stride, 0, x)
            packed = ops.pack_shuffle_block(weights, kernel, stride, outs[i])
            blocks.append(PackedBlock(weights, packed, biases, *options))
            y = ops.shuffle_block(y, weights, biases, *options)
            wanted += [y] if i + 1 in ends else []
        for a, e in zip(shuffle_blocks(x, blocks, ends), wanted, strict=True):
            assert torch.equal(a, e)
