"""The short way to an operator has the results of PyTorch's own way, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from detnas_d2 import ops
from tests.ops import bad_arguments
from tests.ops.compare import convert, tensors

# Of the operators in bad_arguments.CASES, what their public functions make of the arguments.
CALLS: dict[str, Callable[..., object]] = {
    "bn_stats": ops.bn_stats,
    "bn_stats_list": ops.bn_stats,
    "bn_fold": lambda count, mean, m2, *rest: ops.bn_fold(ops.BNStats(count, mean, m2), *rest),
    "bn_stats_fold": ops.bn_stats_fold,
    "pointwise_conv": ops.pointwise_conv,
    "pointwise_conv_bn": ops.pointwise_conv_bn,
    "depthwise_conv": ops.depthwise_conv,
    "depthwise_conv_bn": ops.depthwise_conv_bn,
    "conv3x3": ops.conv3x3,
    "mixed_depthwise": ops.mixed_depthwise,
    "shuffle_concat": ops.shuffle_concat,
    "mixed_sum": ops.mixed_sum,
    "shuffle_block": ops.shuffle_block,
    "shuffle_block_stats": ops.shuffle_block_stats,
}
CASES = [(op, make) for op, make, _ in bad_arguments.CASES if op in CALLS]
WITHOUT_GRADIENT = ("conv3x3", "shuffle_block", "shuffle_block_stats")


def in_dtype(value: object, dtype: torch.dtype) -> object:
    """Maps and weights in the dtype; vectors stay."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.dim() == 4 else value
    return [in_dtype(v, dtype) for v in value] if isinstance(value, list) else value


def results(op: str, args: list, autocast: torch.dtype | None, recorded: bool) -> list[Tensor]:
    """Outputs, and the gradients of everything for random ones of the outputs."""
    count, rest = ([args[0]], args[1:]) if op == "bn_fold" else ([], args)
    leaves = convert(rest, None, grad=recorded)
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        found = tensors(CALLS[op](*count, *leaves))
    wanted = [t for t in found if t.requires_grad]
    if not recorded:
        assert not wanted
        return found
    assert wanted
    torch.manual_seed(1)
    grads = torch.autograd.grad(
        wanted, tensors(leaves), [torch.randn(t.shape).to(t.dtype) for t in wanted],
        allow_unused=True,
    )  # fmt: skip
    return [*found, *(g for g in grads if g is not None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [None, torch.float16, torch.bfloat16])
def test_results_and_gradients_are_those_of_the_registered_ways(
    dtype: torch.dtype, autocast: torch.dtype | None
) -> None:
    torch.manual_seed(0)
    for op, make in CASES:
        args = in_dtype(make(), dtype)
        for recorded in (False, True)[: 1 if op in WITHOUT_GRADIENT else 2]:
            short = results(op, args, autocast, recorded)
            with mock.patch("torch.compiler.is_compiling", lambda: True):
                registered = results(op, args, autocast, recorded)
            assert len(short) == len(registered) > 0
            for i, (a, b) in enumerate(zip(short, registered, strict=True)):
                assert a.dtype == b.dtype and torch.equal(a, b), f"{op}, {recorded=}, result {i}"


@pytest.mark.parametrize("autocast", [False, True])
def test_no_call_takes_the_ways_in_python(autocast: bool) -> None:
    for op, make in CASES:
        recorded = op not in WITHOUT_GRADIENT
        args, way = convert(make(), None, grad=recorded), f"detnas_d2::{op}"
        if op == "bn_fold":
            args[0] = bad_arguments.COUNT
        with (
            profile(activities=[ProfilerActivity.CPU]) as seen,
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            found = tensors(CALLS[op](*args))
        assert [e.name for e in seen.events()].count(way) == 1, (
            op
        )  # autocast's kernel calls it again
        ways = {t.grad_fn.name() for t in found if t.requires_grad}
        assert ways == ({"FunctionBackward"} if recorded else set())


def test_items_of_lists_may_want_no_gradient() -> None:
    """One map of several, a map that is given twice, only the map that is added."""
    torch.manual_seed(0)
    args = bad_arguments.mixed(False)
    for wanted in ((0,), (1,), (0, 1)):
        leaves = [convert(group, None) for group in args[:4]]
        for i in wanted:
            leaves[0][i].requires_grad_()
        grads = []
        for compiling in (False, True):
            with mock.patch("torch.compiler.is_compiling", lambda c=compiling: c):
                ys, stats = ops.mixed_depthwise(*leaves, *args[4:])
            value = ys[0].square().sum() + stats[1].m2.sum()
            grads.append(
                torch.autograd.grad(value, [leaves[0][i] for i in wanted], allow_unused=True)
            )
        for a, b in zip(*grads, strict=True):
            assert torch.equal(a, b)
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    vectors = [torch.ones(3), torch.ones(3)]
    y = ops.mixed_sum([x, x], vectors, vectors, torch.tensor([2.0, 3.0]))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 5.0))
    y = ops.mixed_sum([x.detach()] * 2, vectors, vectors, torch.ones(2), x)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.ones_like(x))
