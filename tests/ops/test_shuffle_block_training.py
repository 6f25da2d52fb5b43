"""shuffle_block_training."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from detnas_d2 import ops
from detnas_d2.ops import has_extension, reference
from tests.ops.compare import CAPABILITIES, capability, channels_last, check_values, tensors
from tests.ops.test_shuffle_block_stats import arguments

pytestmark = pytest.mark.skipif(not has_extension(), reason="the operators are not built")

CASES = [(kernel, stride, method) for kernel in (3, 5, 0) for stride in (1, 2) for method in (0, 2)]


def differentiable(args: tuple, dtype: torch.dtype) -> tuple:
    """The arguments, maps and weights in this dtype, every tensor asking for its gradient."""

    def leaf(t: object) -> object:
        if isinstance(t, Tensor):
            return t.detach().to(dtype).requires_grad_()
        return [leaf(item) for item in t] if isinstance(t, list) else t

    return tuple(map(leaf, args))


def outputs(call, args: tuple) -> list[Tensor]:
    out, _ = call(*args)
    return list(tensors(out))


def gradients(call, args: tuple, wanted: list[Tensor], create_graph: bool = False) -> list[Tensor]:
    outs = outputs(call, args)
    torch.manual_seed(1)
    weights = [torch.randn(o.shape, dtype=torch.float64).to(o.dtype) for o in outs]
    return list(torch.autograd.grad(outs, wanted, weights, create_graph=create_graph))


@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize(("kernel", "stride", "method"), CASES)
def test_agrees_with_the_reference(name: str, kernel: int, stride: int, method: int) -> None:
    torch.manual_seed(kernel)
    with capability(name):
        for shape in ((2, 10, 9, 7), (1, 36, 15, 21)):
            args = arguments(shape, kernel, stride, method, pending=stride == 2)
            args = (channels_last(args[0]), *args[1:])
            check_values(ops.shuffle_block_training, reference.shuffle_block_stats, args, 1e-4)
            for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-3)):
                own = differentiable(args, dtype)
                found = gradients(ops.shuffle_block_training, own, list(tensors(own)))
                exact = differentiable(args, torch.float64)
                expected = gradients(reference.shuffle_block_stats, exact, list(tensors(exact)))
                largest = max(float(e.abs().max()) for e in expected)
                for g, e in zip(found, expected, strict=True):
                    assert g.dtype == dtype and g.shape == e.shape
                    error = (g.double() - e).abs().max()
                    assert error <= tolerance * max(float(e.abs().max()), 1e-3 * largest)


@pytest.mark.parametrize("stride", [1, 2])
def test_any_subset_of_the_inputs_may_want_gradients(stride: int) -> None:
    torch.manual_seed(0)
    args = arguments((1, 12, 8, 6), 3, stride, 2, pending=stride == 2)
    everything = differentiable(args, torch.float32)
    all_inputs = list(tensors(everything))
    expected = gradients(ops.shuffle_block_training, everything, all_inputs)
    draw = random.Random(0)
    for count in (1, 1, 1, 2, 3, len(all_inputs) - 1):
        some = set(draw.sample(range(len(all_inputs)), count))
        for i, t in enumerate(all_inputs):
            t.requires_grad_(i in some)
        wanted = [t for t in all_inputs if t.requires_grad]
        found = gradients(ops.shuffle_block_training, everything, wanted)
        for i, g in zip(sorted(some), found, strict=True):
            assert torch.equal(g, expected[i])


@pytest.mark.parametrize("stride", [1, 2])
def test_second_derivatives_are_the_references(stride: int) -> None:
    torch.manual_seed(0)
    args = arguments((1, 8, 6, 5), 3, stride, 2, pending=stride == 2)
    found = []
    for call in (ops.shuffle_block_training, reference.shuffle_block_stats):
        own = differentiable(args, torch.float64)
        wanted = list(tensors(own))
        first = gradients(call, own, wanted, create_graph=True)
        total = sum((g.square().sum() for g in first), torch.zeros((), dtype=torch.float64))
        found.append(torch.autograd.grad(total, wanted, allow_unused=True))
    for g, e in zip(*found, strict=True):
        assert (g is None) == (e is None)
        if g is not None and e is not None:
            torch.testing.assert_close(g, e)


def test_statistics_have_no_gradient_and_one_output_may_go_unused() -> None:
    torch.manual_seed(0)
    args = differentiable(arguments((1, 8, 6, 5), 5, 1, 1), torch.float32)
    (a, b), stats = ops.shuffle_block_training(*args)
    assert a.requires_grad and b.requires_grad
    assert not any(t.requires_grad for t in tensors(stats))
    grad = torch.autograd.grad(b.sum(), args[5][0])[0]
    (_, b), _ = reference.shuffle_block_stats(*args)
    torch.testing.assert_close(
        grad, torch.autograd.grad(b.sum(), args[5][0])[0], rtol=1e-3, atol=1e-3
    )
