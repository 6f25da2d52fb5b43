"""Under autocast to bfloat16 blocks run their modules on CPUs that multiply it themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from detnas_d2.evaluation.recalibration import BatchCollector
from detnas_d2.layers import SeparableConv, fused_ops
from detnas_d2.layers.batch_norm_mode import use_batch_statistics
from detnas_d2.modeling.mixed_block import MixedBlock
from tests.layers.fused_backbones import backbone, pair


@pytest.fixture(params=[True, False], ids=["with instructions", "without"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the CPU seems to multiply bfloat16."""
    monkeypatch.setattr(fused_ops, "multiplies_bfloat16", lambda: request.param)
    return request.param


def trained(net: nn.Module, x: Tensor) -> list[Tensor]:
    outputs = list(net.train()(x).values())
    torch.autograd.backward([y.float().square().sum() for y in outputs])
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    assert grads
    return [*outputs, *grads, *net.buffers()]


@torch.no_grad()
def evaluated(net: nn.Module, x: Tensor) -> list[Tensor]:
    return list(net.eval()(x).values())


@torch.no_grad()
def recalibrated(net: nn.Module, x: Tensor) -> list[Tensor]:
    collector = BatchCollector()
    with use_batch_statistics(net.eval(), collector.add):
        outputs = list(net(x).values())
    collector.end_batch()
    moments = collector.statistics.moments.values()
    return [*outputs, *(t for m in moments for t in (m.mean, m.m2))]


@pytest.mark.parametrize("run", [trained, evaluated, recalibrated])
@pytest.mark.parametrize("fused_ops", ["auto", "on"])
def test_backbones(
    run: Callable[[nn.Module, Tensor], list[Tensor]], fused_ops: str, native: bool, used: list[str]
) -> None:
    net, reference = pair(backbone(2, seed=3))
    net.fused_ops = fused_ops
    x = torch.rand(2, 3, 33, 47)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = run(net, x), run(reference, x)
    assert bool(used) != native
    assert len(found) == len(expected)
    if native:  # as if the operators were off, to the bit
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("run", [trained, evaluated, recalibrated])
def test_other_dtypes_and_no_autocast_run_the_operators(
    run: Callable[[nn.Module, Tensor], list[Tensor]], native: bool, used: list[str]
) -> None:
    net, _ = pair(backbone(2, seed=3))
    run(net, torch.rand(2, 3, 33, 29))
    assert used
    used.clear()
    with torch.autocast("cpu", torch.float16):
        run(net, torch.rand(2, 3, 33, 29))
    assert used


@pytest.mark.parametrize("recompute", [True, False])
def test_mixtures_run_their_modules_in_any_mixed_precision(
    recompute: bool, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Tensor:
        raise AssertionError("a mixture ran through the operators")

    monkeypatch.setattr("detnas_d2.modeling.mixed_block.mixture", fail)
    torch.manual_seed(0)
    block = MixedBlock(
        ("sep_k3", "sep_k5"),
        lambda op: SeparableConv(8, 8, kernel=int(op[-1]), norm=nn.BatchNorm2d, residual=True),
        recompute=recompute,
    )
    reference = copy.deepcopy(block)
    block.fused_ops = "on"
    results = []
    for net in (block, reference):
        torch.manual_seed(1)
        x = torch.randn(2, 8, 5, 7, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            y = net(x, torch.tensor([0.3, 0.7]))
        y.float().square().sum().backward()
        results.append([y, x.grad, *(p.grad for p in net.parameters()), *net.buffers()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
