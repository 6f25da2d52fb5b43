"""FLOPs as ``torch.utils.flop_counter`` counts them in the references."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from detnas_d2 import ops
from detnas_d2.ops import reference
from tests.ops.compare import block


def flops(f: Callable, *args: object, **options: object) -> int:
    with FlopCounterMode(display=False) as counter:
        f(*args, **options)
    return counter.get_total_flops()


def test_convolutions_forward() -> None:
    x = torch.randn(2, 6, 9, 7)
    for name, args in (
        ("pointwise_conv", (x, torch.randn(10, 6, 1, 1))),
        ("pointwise_conv", (x, torch.randn(10, 3, 1, 1), None, None, True, None, False, True, 2)),
        ("pointwise_conv_bn", (x, torch.randn(10, 3, 1, 1), None, None, True, None, 2)),
        ("conv3x3", (x, torch.randn(10, 6, 3, 3))),
        ("depthwise_conv", (x, torch.randn(6, 1, 5, 5))),
        ("depthwise_conv_bn", (x, torch.randn(6, 1, 5, 5), None, None, True, None, 2)),
        (
            "depthwise_conv",
            (x, torch.randn(6, 1, 3, 3), None, None, False, None, True, False, 2, 3),
        ),
        (
            "mixed_depthwise",
            ([x, x], [torch.randn(6, 1, k, k) for k in (3, 7)], [], [], True, True, 2, [2, 1]),
        ),
    ):
        expected = flops(getattr(reference, name), *args)
        assert flops(getattr(ops, name), *args) == expected > 0
    dense = torch.randn(10, 6, 3, 3)
    together = flops(ops.conv3x3_packed, [x, x], dense, ops.pack_conv3x3(dense))
    assert together == 2 * flops(reference.conv3x3, x, dense)
    # By hand: 2 images of 5 x 4 pixels, 6 channels, 9 taps, a multiplication and an addition.
    assert flops(ops.depthwise_conv, x, torch.randn(6, 1, 3, 3), stride=2) == 2 * 20 * 6 * 9 * 2


@pytest.mark.parametrize("kernel", [0, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_blocks(kernel: int, stride: int) -> None:
    weights, biases = block(8, kernel, stride)
    x = torch.randn(2, 8, 9, 7)
    args = (x, weights, biases, kernel, stride, 1)
    assert flops(ops.shuffle_block, *args) == flops(reference.shuffle_block, *args) > 0
    packed = ops.pack_shuffle_block(weights, kernel, stride)
    assert flops(ops.shuffle_block, *args, packed) == flops(ops.shuffle_block, *args)
    halves = (x, None) if stride == 2 else (x[:, :4], x[:, 4:])
    eps = [1e-3] * len(weights)
    args = (*halves, None, None, False, weights, biases, biases, eps, kernel, stride, 0)
    expected = flops(reference.shuffle_block_stats, *args)
    assert flops(ops.shuffle_block_stats, *args) == expected > 0


def test_gradients() -> None:
    x = torch.randn(2, 6, 9, 7)

    def backward(module: object, name: str, wanted: tuple[bool, bool], w: torch.Tensor) -> int:
        leaves = [t.clone().requires_grad_(r) for t, r in zip((x, w), wanted, strict=True)]
        y, _ = getattr(module, name)(*leaves)
        return flops(y.backward, torch.ones_like(y))

    w = torch.randn(10, 6, 1, 1)
    for wanted in ((True, True), (True, False), (False, True)):
        expected = backward(reference, "pointwise_conv", wanted, w)
        assert backward(ops, "pointwise_conv", wanted, w) == expected > 0
    # PyTorch counts the gradient of a grouped convolution's weight as if it were not grouped.
    once = 2 * 63 * 6 * 25 * 2
    w = torch.randn(6, 1, 5, 5)
    assert backward(ops, "depthwise_conv", (True, True), w) == 2 * once
    assert backward(ops, "depthwise_conv", (True, False), w) == once
    taps, maps = [w.clone().requires_grad_()], [x.clone().requires_grad_()]
    (y,), _ = ops.mixed_depthwise(maps, taps)
    assert flops(y.backward, torch.ones_like(y)) == 2 * once
