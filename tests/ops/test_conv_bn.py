"""Maps and convolutions with the BatchNorm that follows them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from detnas_d2 import ops
from detnas_d2.ops import reference
from tests.ops.compare import check_gradients, check_values, layouts, tensors

SHAPES = [(2, 6, 7, 9), (1, 32, 20, 13), (3, 4, 1, 2)]


def norm(c: int) -> tuple[Tensor, Tensor, float]:
    return torch.rand(c) + 0.5, torch.randn(c), 0.1


def calls(x: Tensor) -> dict[str, tuple]:
    """Arguments of every operator."""
    c = x.shape[1]
    pending = (torch.randn(c), torch.randn(c), True)
    square, taps = torch.randn(8, c // 2, 1, 1).to(x.dtype), torch.randn(c, 1, 5, 5).to(x.dtype)
    return {
        "bn_stats_fold": (x, *pending, *norm(c)),
        "pointwise_conv_bn": (x, square, *pending, torch.randn(8), 2, *norm(8)),
        "depthwise_conv_bn": (x, taps, *pending, None, 2, 3, *norm(c)),
    }


def separately(name: str, args: tuple) -> list[Tensor]:
    """By the operator without a BatchNorm, and :func:`ops.bn_fold`."""
    *own, gamma, beta, eps = args
    if name == "bn_stats_fold":
        stats = ops.bn_stats(*own)
        return [*stats, *ops.bn_fold(stats, gamma, beta, eps)]
    x, weight, scale, shift, relu, bias, *geometry = own
    convolution = getattr(ops, name.removesuffix("_bn"))
    y, stats = convolution(x, weight, scale, shift, relu, bias, False, True, *geometry)
    assert stats is not None
    return [y, *stats, *ops.bn_fold(stats, gamma, beta, eps)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_the_two_operators_to_the_bit(shape: tuple, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for x in layouts(shape, dtype):
        for name, args in calls(x).items():
            for some in (args, (*args[:-3], None, None, 1e-3)):
                found, expected = tensors(getattr(ops, name)(*some)), separately(name, some)
                for a, e in zip(found, expected, strict=True):
                    assert a.dtype == e.dtype and a.stride() == e.stride() and torch.equal(a, e)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_the_references(shape: tuple) -> None:
    torch.manual_seed(0)
    for name, args in calls(torch.randn(shape)).items():
        op, expected = getattr(ops, name), getattr(reference, name)
        check_values(op, expected, args, 1e-4)
        check_gradients(op, expected, args, torch.float64, 1e-8)
        args = (*args[:2], None, None, False, *args[5:]) if name != "bn_stats_fold" else args
        check_gradients(op, expected, (*args[:-3], None, None, 0.1), torch.float64, 1e-8)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2, 3), (4,), (5,), (1, 4)])
def test_gradients_of_some_outputs(wanted: tuple[int, ...]) -> None:
    """Of y, mean, m2, scale, shift: those that nobody uses have no gradient."""
    torch.manual_seed(0)
    for name, args in calls(torch.randn(2, 6, 5, 4)).items():
        if name == "bn_stats_fold":
            continue
        grads = []
        for f in (getattr(ops, name), lambda *a, n=name: separately(n, a)):
            leaves = [a.detach().requires_grad_() if isinstance(a, Tensor) else a for a in args]
            found = [t for t in tensors(f(*leaves)) if t.requires_grad]
            value = sum((found[i % len(found)] * (i + 2)).square().sum() for i in wanted)
            grads.append(torch.autograd.grad(value, tensors(leaves), allow_unused=True))
        for a, e in zip(*grads, strict=True):
            assert (a is None or not a.any()) if e is None else torch.allclose(a, e, rtol=1e-4)


def test_empty() -> None:
    x = torch.randn(0, 6, 5, 4, requires_grad=True)
    for name, args in calls(x).items():
        found = tensors(getattr(ops, name)(*args))
        for a, e in zip(found, separately(name, args), strict=True):
            assert torch.equal(a.nan_to_num(), e.nan_to_num())
        assert found[-4].shape == found[-1].shape and not found[-4].any()


def test_opcheck() -> None:
    for name, args in calls(torch.randn(2, 6, 5, 4)).items():
        leaves = [a.requires_grad_() if isinstance(a, Tensor) else a for a in args]
        opcheck(getattr(torch.ops.detnas_d2, name), tuple(leaves))


def test_errors_name_the_argument() -> None:
    for name, args in calls(torch.randn(2, 6, 5, 4)).items():
        for index, what in ((-3, "gamma"), (-2, "beta")):
            bad = list(args)
            bad[index] = torch.ones(5)
            with pytest.raises(RuntimeError, match=f"{what}: expected shape"):
                getattr(ops, name)(*bad)
