"""torch.compile and torch.export take all operators into one graph, and their derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.testing import CompileCounterWithBackend

from detnas_d2 import ops
from tests.ops import compare
from tests.ops.compare import tensors
from tests.ops.test_derivatives import cases

DERIVATIVES: dict[str, Callable[[Callable[..., Tensor], tuple[Tensor, ...]], object]] = {
    "gradient": lambda f, at: torch.func.grad(f, argnums=tuple(range(len(at))))(*at),
    "tangent": lambda f, at: torch.func.jvp(f, at, tuple(t.cos() for t in at)),
    "vmap": lambda f, at: torch.func.vmap(f)(*(torch.stack([t, 2 * t]) for t in at)),
}


@pytest.fixture(autouse=True)
def forgotten() -> None:
    torch._dynamo.reset()


def together(*names: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """Differentiable operators in one function of tensors, and where to take it."""
    torch.manual_seed(0)
    made = cases(ops)
    found = [made[name] for name in names or made]
    counts = [len(at) for _, at in found]

    def f(*at: Tensor) -> Tensor:
        total, rest = torch.zeros((), dtype=torch.float64), list(at)
        for (case, _), count in zip(found, counts, strict=True):
            own, rest = rest[:count], rest[count:]
            for value in tensors(case(*own)):
                total = total + value.square().sum()
        return total

    return f, tuple(t.detach() for _, at in found for t in at)


def test_values_and_gradients_in_one_graph() -> None:
    f, at = together()
    leaves = [t.requires_grad_() for t in at]
    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    for a, b in zip(
        (compiled(*leaves), *torch.autograd.grad(compiled(*leaves), leaves)),
        (f(*leaves), *torch.autograd.grad(f(*leaves), leaves)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("derivative", list(DERIVATIVES))
def test_function_transforms_in_compiled_code(derivative: str) -> None:
    f, at = together("bn_fold", "pointwise_conv", "mixed_sum")  # tensors, a choice, lists

    def run(*at: Tensor) -> object:
        return DERIVATIVES[derivative](f, at)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*at), run(*at))


class Blocks(nn.Module):
    """Operators with and without gradients, on maps of any size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(8, 8, 1, 1))
        self.taps = nn.Parameter(torch.randn(8, 1, 3, 3))
        self.dense = nn.Parameter(torch.randn(8, 8, 3, 3))
        weights, biases = compare.block(8, 5, 2)
        self.weights, self.biases = nn.ParameterList(weights), nn.ParameterList(biases)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        scale, shift = ops.bn_fold(ops.bn_stats(x), None, None, 1e-5)
        y, _ = ops.pointwise_conv(x, self.weight, scale, shift, True)
        z, stats = ops.depthwise_conv(y, self.taps, want_stats=True, stride=2)
        (m, n), _ = ops.mixed_depthwise([y, x], [self.taps, self.taps], dilation=[1, 2])
        left, right = ops.shuffle_concat(m, n, method=1, split=True)
        mixed = ops.mixed_sum([left, right], [scale, scale], [shift, shift], scale[:2], y)
        weights, biases = list(self.weights), list(self.biases)
        with torch.no_grad():
            block = ops.shuffle_block(x, weights, biases, 5, 2, 1)
            eps = [1e-5] * len(weights)
            args = (None, None, False, weights, biases, biases, eps, 5, 2, 0)
            whole, of = ops.shuffle_block_stats(x, None, *args)
            of.append(ops.conv3x3(x, self.dense, want_stats=True)[1])
        return z, stats.m2, mixed, block, whole, *(s.mean for s in of)


SIZES = ((2, 8, 9, 7), (3, 8, 12, 20), (5, 8, 33, 6))


def test_one_graph_for_all_sizes() -> None:
    net, counter = Blocks(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=counter, fullgraph=True, dynamic=True)
    for size in SIZES:
        x = torch.randn(size)
        torch.testing.assert_close(compiled(x), net(x))
    assert counter.frame_count == 1


def test_export_keeps_the_operators_for_all_sizes() -> None:
    net, dim = Blocks(), torch.export.Dim.AUTO
    example = (torch.randn(SIZES[0]),)
    exported = torch.export.export(net, example, dynamic_shapes=({0: dim, 2: dim, 3: dim},))
    graphs = [m.graph for m in exported.graph_module.modules() if isinstance(m, fx.GraphModule)]
    names = {str(node.target) for graph in graphs for node in graph.nodes}  # no_grad has its own
    for op in (
        "bn_stats", "bn_fold", "pointwise_conv", "depthwise_conv", "mixed_depthwise",
        "shuffle_concat", "mixed_sum", "shuffle_block", "shuffle_block_stats", "conv3x3",
    ):  # fmt: skip
        assert f"detnas_d2.{op}.default" in names
    for size in SIZES:
        x = torch.randn(size)
        torch.testing.assert_close(exported.module()(x), net(x))
