"""Second derivatives, forward-mode derivatives and torch.func: right, or refused in words."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.autograd.forward_ad as fwad
from torch import Tensor
from torch.autograd import grad, gradgradcheck

from detnas_d2 import ops
from detnas_d2.layers import ShuffleBlock
from detnas_d2.layers.fused_shuffle import fused_forward
from detnas_d2.ops import BNStats, reference
from tests.ops import bad_arguments
from tests.ops.compare import tensors

Op = Callable[..., object]
F64 = torch.float64


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64, requires_grad=True)


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [leaf(*s) for s in shapes]


X, C = (2, 4, 3, 3), 4


def cases(module: object) -> dict[str, tuple[Op, list[Tensor]]]:
    """A function of tensors alone for every differentiable operator, and where to take it."""
    count = torch.tensor(18.0, dtype=F64)

    def values(f: Op) -> Op:
        return lambda *t: tuple(v for v in tensors(f(*t)) if v.dim() > 0)  # without counts

    def mixed(*t: Tensor) -> object:
        return module.mixed_depthwise(t[:2], t[2:4], t[4:6], t[6:8], True, True, 1, [1, 2])

    return {
        "bn_stats": (values(lambda x, a, b: module.bn_stats(x, a, b, True)), leaves(X, (C,), (C,))),
        "bn_stats of two": (
            values(lambda x, y, a, b: module.bn_stats([x, y], a, b, True)),
            leaves(X, (1, C, 2, 3), (C,), (C,)),
        ),
        "bn_fold": (
            lambda m, s, g, b: module.bn_fold(BNStats(count, m, s.square() + 1), g, b, 1e-3),
            leaves((C,), (C,), (C,), (C,)),
        ),
        "bn_stats_fold": (
            values(lambda x, a, b, g, h: module.bn_stats_fold(x, a, b, True, g, h, 0.1)),
            leaves(X, (C,), (C,), (C,), (C,)),
        ),
        "pointwise_conv_bn": (
            values(
                lambda x, w, a, b, c, g, h: module.pointwise_conv_bn(
                    x, w, a, b, True, c, 2, g, h, 0.1
                )
            ),
            leaves(X, (6, 2, 1, 1), (C,), (C,), (6,), (6,), (6,)),
        ),
        "depthwise_conv_bn": (
            values(
                lambda x, w, a, b, g, h: module.depthwise_conv_bn(
                    x, w, a, b, True, None, 2, 1, g, h, 0.1
                )
            ),
            leaves(X, (C, 1, 3, 3), (C,), (C,), (C,), (C,)),
        ),
        "pointwise_conv": (
            values(lambda x, w, a, b, c: module.pointwise_conv(x, w, a, b, True, c, False, True)),
            leaves(X, (3, C, 1, 1), (C,), (C,), (3,)),
        ),
        "pointwise_conv with ReLU, in groups": (
            values(
                lambda x, w, c: module.pointwise_conv(x, w, None, None, False, c, True, False, 2)
            ),
            leaves(X, (6, 2, 1, 1), (6,)),
        ),
        "depthwise_conv": (
            values(
                lambda x, w, a, b, c: module.depthwise_conv(x, w, a, b, True, c, False, True, 2, 1)
            ),
            leaves(X, (C, 1, 3, 3), (C,), (C,), (C,)),
        ),
        "mixed_depthwise": (
            values(mixed),
            leaves(X, X, (C, 1, 3, 3), (C, 1, 5, 5), (C,), (C,), (C,), (C,)),
        ),
        "shuffle_concat": (
            values(
                lambda x, y, a, b: module.shuffle_concat(
                    x, y, None, None, a, b, False, True, 2, True
                )
            ),
            leaves(X, X, (C,), (C,)),
        ),
        "mixed_sum": (
            lambda x, y, a, b, c, d, w, r: module.mixed_sum([x, y], [a, b], [c, d], w, r),
            leaves(X, X, (C,), (C,), (C,), (C,), (2,), X),
        ),
    }  # fmt: skip


NAMES = list(cases(ops))


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(name: str) -> None:
    torch.manual_seed(0)
    f, at = cases(ops)[name]
    assert gradgradcheck(f, at, fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
def test_hessian_vector_products_and_third_derivatives_equal_the_references(name: str) -> None:
    results = []
    for module in (ops, reference):
        torch.manual_seed(0)
        f, at = cases(module)[name]
        value = sum((t.square() * t).sum() for t in tensors(f(*at)))
        for _ in range(3):
            found = grad(value, at, create_graph=True, allow_unused=True)
            torch.manual_seed(1)
            value = sum((g * torch.randn_like(g)).sum() for g in found if g is not None)
        results.append(value)
    torch.testing.assert_close(*results)


def test_second_derivatives_of_a_chain_count_each_way_once() -> None:
    """The affine map of a BatchNorm depends on the map that it is pending on."""
    torch.manual_seed(0)
    gamma, beta = leaves((C,), (C,))
    weight = leaf(3, C, 1, 1)

    def f(x: Tensor, module: object) -> Tensor:
        scale, shift = module.bn_fold(module.bn_stats(x), gamma, beta, 1e-3)
        y, stats = module.pointwise_conv(x, weight, scale, shift, True, want_stats=True)
        return (y.square().sum() + stats.m2.sum()) * stats.mean.sum()

    x = leaf(*X)
    results = []
    for module in (ops, reference):
        (first,) = grad(f(x, module), x, create_graph=True)
        results.append(grad(first.square().sum(), [x, weight, gamma]))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_penalty_in_other_dtypes_and_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(X, requires_grad=True)
    w = torch.randn(3, C, 1, 1, requires_grad=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y, _ = ops.pointwise_conv(x, w, relu=True, want_stats=True)
        (g,) = grad(y.float().square().sum(), x, create_graph=True)
        (second,) = grad(g.square().sum(), w)
    z = torch.relu(x)
    (g,) = grad(torch.nn.functional.conv2d(z, w).square().sum(), x, create_graph=True)
    (expected,) = grad(g.square().sum(), w)
    assert (second - expected).norm() < (
        0.05 if dtype == torch.bfloat16 else 1e-5
    ) * expected.norm()


@pytest.mark.parametrize("name", NAMES)
def test_forward_mode_and_function_transforms(name: str) -> None:
    torch.manual_seed(0)
    f, at = cases(ops)[name]
    plain = tuple(t.detach() for t in at)
    directions = tuple(torch.randn_like(t) for t in plain)

    def loss(*t: Tensor) -> Tensor:
        return sum(v.square().sum() for v in tensors(f(*t)))

    gradients = grad(loss(*at), at)
    expected = sum((g * v).sum() for g, v in zip(gradients, directions, strict=True))
    for recorded in (False, True):
        with fwad.dual_level(), torch.set_grad_enabled(recorded):
            duals = [fwad.make_dual(t, v) for t, v in zip(plain, directions, strict=True)]
            torch.testing.assert_close(fwad.unpack_dual(loss(*duals)).tangent, expected)
    _, tangent = torch.func.jvp(loss, plain, directions)
    torch.testing.assert_close(tangent, expected)
    every = tuple(range(len(plain)))
    torch.testing.assert_close(torch.func.grad(loss, argnums=every)(*plain), gradients)
    batch = tuple(torch.stack([t, 2 * t]) for t in plain)
    each = torch.func.vmap(torch.func.grad(loss))(*batch)
    torch.testing.assert_close(each[0], gradients[0])


def test_operators_called_by_themselves_do_not_drop_tangents() -> None:
    calls = {op: make for op, make, _ in bad_arguments.CASES}
    for op, make in calls.items():
        overload = getattr(torch.ops.detnas_d2, op).default
        args = make()
        place = next(i for i, a in enumerate(args) if isinstance(a, (Tensor, list)))
        with fwad.dual_level():
            first = tensors(args[place])[0]
            dual = fwad.make_dual(first, torch.ones_like(first))
            args[place] = dual if isinstance(args[place], Tensor) else [dual, *args[place][1:]]
            with pytest.raises((NotImplementedError, RuntimeError), match="forward|jvp|tangent"):
                overload(*args)


def test_what_has_no_gradient_refuses_inputs_that_want_one() -> None:
    calls = {op: make for op, make, _ in bad_arguments.CASES}
    alone = (
        "conv3x3", "conv3x3_packed", "pack_conv3x3", "pack_shuffle_block", "roi_align",
        "shuffle_block", "shuffle_block_packed", "shuffle_block_stats", "shuffle_blocks_stats",
    )  # fmt: skip
    refused = [op for op in calls if op in alone or op.endswith("_backward")]
    assert len(refused) == 17
    for op in refused:
        overload = getattr(torch.ops.detnas_d2, op).default
        args = calls[op]()
        place = [i for i, a in enumerate(args) if isinstance(a, (Tensor, list))][0]
        first = tensors(args[place])[0].requires_grad_()
        with pytest.raises(NotImplementedError, match=f"{op}: not differentiable, but"):
            overload(*args)
        with torch.no_grad():
            overload(*args)
        first.requires_grad_(False)
        overload(*args)
    x, *rest = bad_arguments.block(3, 1)
    with pytest.raises(NotImplementedError, match="x requires grad"):
        ops.shuffle_block(x.requires_grad_(), *rest)
    left, *rest = bad_arguments.block_stats(5, 2)
    rest[4][1].requires_grad_()
    with pytest.raises(NotImplementedError, match="weights requires grad"):
        ops.shuffle_block_stats(left, *rest)


@pytest.mark.parametrize("training", [True, False])
def test_blocks_run_their_modules_under_transforms(training: bool) -> None:
    torch.manual_seed(0)
    block = ShuffleBlock(8, 8, op="3x3", stride=1, norm=torch.nn.BatchNorm2d, shuffle_method=2)
    block.double().train(training)
    x = torch.randn(2, 8, 4, 4, dtype=F64)
    with torch.no_grad(), fwad.dual_level():
        dual = fwad.make_dual(x, torch.ones_like(x))
        assert fused_forward(None, [block], None, dual, (1,)) is None
    with torch.no_grad():
        assert fused_forward(None, [block], None, x, (1,)) is not None


def test_second_derivatives_through_fused_blocks_are_those_of_the_modules() -> None:
    torch.manual_seed(0)
    options = {"norm": torch.nn.BatchNorm2d, "shuffle_method": 2}
    blocks = [
        ShuffleBlock(6, 8, op="3x3", stride=2, **options),
        ShuffleBlock(8, 8, op="xception", stride=1, **options),
    ]
    net = torch.nn.Sequential(*blocks).double().train()
    x, parameters = leaf(2, 6, 5, 4), list(net.parameters())
    results = []
    for fused in (True, False):
        y = fused_forward(None, blocks, None, x, (2,))[0][2] if fused else net(x)
        (first,) = grad((y.square() * y).sum(), x, create_graph=True)
        results.append(grad(first.square().sum(), [x, *parameters]))
    torch.testing.assert_close(*results)
