"""Mixed blocks of Hit-Detector through the operators: the same as their modules."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from detnas_d2.layers import InvertedResidual, SeparableConv, fused_residual, get_norm
from detnas_d2.layers.batch_norm_mode import frozen_statistics
from detnas_d2.modeling import mixed_block
from detnas_d2.modeling.mixed_block import MixedBlock

OPS = ("ir_k3_e2", "ir_k5_e3_d2", "sep_k3", "sep_k5_d3", "ir_k7_e1")


def candidate(name: str, *, out: int, stride: int, norm: str = "BN") -> nn.Module:
    kind, *options = name.split("_")
    numbers = {option[0]: int(option[1:]) for option in options}
    common = {
        "kernel": numbers["k"],
        "dilation": numbers.get("d", 1),
        "norm": partial(get_norm, norm),
        "stride": stride,
    }
    if kind == "sep":
        return SeparableConv(8, out, residual=True, **common)
    return InvertedResidual(8, out, expansion=numbers["e"], **common)


def pair(
    out: int, stride: int, recompute: bool, dtype: torch.dtype, **options
) -> tuple[MixedBlock, MixedBlock]:
    torch.manual_seed(0)
    build = partial(candidate, out=out, stride=stride, **options)
    block = MixedBlock(OPS, build, recompute=recompute).to(dtype)
    reference = copy.deepcopy(block)
    block.fused_ops = "on"
    return block, reference


def step(block: MixedBlock, x: Tensor, weights: Tensor, active: list[int]) -> list[Tensor]:
    """Output and gradients of input and weights; the others are left with the block."""
    x, weights = (t.clone().requires_grad_() for t in (x, weights))
    y = block(x, weights, active)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y.detach())).sum().backward()
    return [y.detach(), x.grad, weights.grad]


@pytest.fixture
def used(monkeypatch) -> list[int]:
    """Numbers of candidates of the mixtures that ran through the operators."""
    counts: list[int] = []

    def counted(modules, x, weights):
        counts.append(len(modules))
        return fused_residual.mixture(modules, x, weights)

    monkeypatch.setattr(mixed_block, "mixture", counted)
    return counts


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("out", "stride"), [(8, 1), (12, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_agrees(recompute: bool, out: int, stride: int, dtype: torch.dtype, used: list) -> None:
    block, reference = pair(out, stride, recompute, dtype)
    x, weights = torch.randn(2, 8, 13, 10, dtype=dtype), torch.rand(len(OPS), dtype=dtype)
    tolerance = {"rtol": 1e-9, "atol": 1e-10} if dtype == torch.float64 else {}
    if dtype == torch.float32:
        tolerance = {"rtol": 1e-3, "atol": 2e-3}
    for active in ([0, 1, 2, 3, 4], [1, 3]):
        mine, theirs = (step(b, x, weights, active) for b in (block, reference))
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, **tolerance)
    assert used == ([5, *[1] * 5, 2, 1, 1] if recompute else [5, 2])
    for (name, p), q in zip(block.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, **tolerance, msg=name)
    for (name, p), q in zip(block.named_buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(p, q, **tolerance, msg=name)


def test_frozen_statistics_stay(used: list) -> None:
    block, _ = pair(8, 1, True, torch.float32)
    before = copy.deepcopy(dict(block.named_buffers()))
    with frozen_statistics(block):
        step(block, torch.randn(2, 8, 6, 6), torch.rand(len(OPS)), [0, 2])
    assert used == [2, 1, 1]
    for name, value in block.named_buffers():
        assert torch.equal(value, before[name]), name


def test_modules_run_themselves_where_the_operators_do_not_apply(used: list) -> None:
    x, weights = torch.randn(2, 8, 6, 6), torch.rand(len(OPS))
    block, _ = pair(8, 1, False, torch.float32)
    block.eval()(x, weights)  # running statistics
    with torch.autocast("cpu", torch.bfloat16):
        block.train()(x, weights)
    pair(8, 1, False, torch.float32, norm="GN")[0](x, weights)
    grouped = MixedBlock(
        ("a",),
        lambda op: InvertedResidual(8, 8, kernel=3, expansion=2, groups=2, norm=nn.BatchNorm2d),
    )
    grouped.fused_ops = "on"
    grouped(x, weights[:1])
    block.fused_ops = "off"
    block(x, weights)
    assert used == []


def test_one_candidate_that_does_not_fit_leaves_the_others_fused(used: list) -> None:
    def build(op: str) -> nn.Module:
        return nn.Identity() if op == "skip" else candidate(op, out=8, stride=1)

    torch.manual_seed(0)
    block = MixedBlock(("sep_k3", "skip", "ir_k3_e2"), build, recompute=False).double()
    reference = copy.deepcopy(block)
    block.fused_ops = "on"
    x, weights = torch.randn(2, 8, 6, 6).double(), torch.rand(3).double()
    mine, theirs = (step(b, x, weights, [0, 1, 2]) for b in (block, reference))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert used == [2]
