"""Several batches in one call of an operator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from detnas_d2 import ops
from detnas_d2.ops import reference
from tests.ops import batches
from tests.ops.compare import channels_last, check_gradients, layouts

SHAPES = [((6, 6, 7, 9), 3), ((4, 32, 20, 13), 2), ((5, 4, 1, 2), 5), ((0, 6, 5, 4), 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shape", "count"), SHAPES)
def test_each_batch_is_as_by_itself(shape: tuple, count: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    batches.check(shape, count, dtype, channels_last)


@pytest.mark.parametrize("layout", range(5))
def test_in_every_layout(layout: int) -> None:
    torch.manual_seed(0)

    def place(x: Tensor) -> Tensor:
        return layouts(tuple(x.shape), x.dtype)[layout].copy_(x)

    batches.check((4, 6, 7, 9), 2, torch.float32, place)


def affine(count: int, channels: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, channels), torch.randn(count, channels)


def arguments() -> dict[str, tuple]:
    """Of operators with a gradient."""
    x, y = channels_last(torch.randn(4, 6, 5, 4)), channels_last(torch.randn(4, 6, 5, 4))
    square, taps = torch.randn(8, 6, 1, 1), torch.randn(6, 1, 3, 3)
    norm = (torch.rand(6) + 0.5, torch.randn(6), 0.1)
    wide = (torch.rand(8) + 0.5, torch.randn(8), 0.1)
    pending = (*affine(2, 6), True)
    return {
        "bn_stats_fold": (x, *pending, *norm, 2),
        "pointwise_conv_bn": (x, square, *pending, torch.randn(8), 1, *wide, 2),
        "depthwise_conv_bn": (x, taps, *pending, None, 2, 1, *norm, 2),
        "shuffle_concat": (x, y, *affine(2, 6), *affine(2, 6), True, False, 2, True, 2),
    }


@pytest.mark.parametrize(
    "name", ["bn_stats_fold", "pointwise_conv_bn", "depthwise_conv_bn", "shuffle_concat"]
)
def test_gradients_are_the_references(name: str) -> None:
    torch.manual_seed(0)
    args = arguments()[name]
    check_gradients(getattr(ops, name), getattr(reference, name), args, torch.float64, 1e-8)
    leaves = [a.requires_grad_() if isinstance(a, Tensor) else a for a in args]
    found = [t for t in batches.tensors(getattr(ops, name)(*leaves)) if t.requires_grad]
    grads = torch.autograd.grad(sum(t.sum() for t in found), leaves[0])
    assert not grads[0].requires_grad  # nothing of the graph is kept
    opcheck(getattr(torch.ops.detnas_d2, name), tuple(leaves))


def test_opcheck_of_blocks() -> None:
    for maps, vectors, op in [
        case
        for name, case in batches.cases((4, 6, 5, 4), 2, torch.float32, channels_last).items()
        if name.startswith("shuffle_block_stats")
    ]:
        with torch.no_grad():
            assert op(*maps, *vectors, 2)[1][0].mean.shape == (2, 6)
    weights = [torch.randn(3, 3, 1, 1), torch.randn(3, 1, 3, 3), torch.randn(3, 3, 1, 1)]
    ones, halves = [torch.ones(3)] * 3, (torch.randn(4, 3, 5, 4), torch.randn(4, 3, 5, 4))
    args = (*halves, None, None, False, weights, ones, ones, [1e-3] * 3, 3, 1, 1, 2)
    opcheck(torch.ops.detnas_d2.shuffle_block_stats, args)


def test_errors() -> None:
    x, a = torch.randn(4, 6, 5, 4), torch.ones(2, 6)
    for module in (ops, reference):
        with pytest.raises(RuntimeError, match="batches: expected a divisor of 4 images, got 3"):
            module.bn_stats_fold(x, batches=3)
        with pytest.raises(RuntimeError, match="batches: expected a divisor of 4 images, got 0"):
            module.shuffle_concat(x, x, batches=0)
    with pytest.raises(RuntimeError, match=r"scale: expected shape \[2, 6\], got \[6\]"):
        ops.bn_stats_fold(x, a[0], a[0], batches=2)
    with pytest.raises(RuntimeError, match=r"right_shift: expected shape \[2, 6\], got \[4, 6\]"):
        ops.shuffle_concat(x, x, a, a, a, torch.ones(4, 6), batches=2)
