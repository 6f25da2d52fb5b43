"""Running statistics of BatchNorms that run outside of their modules, all at once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from detnas_d2 import ops
from detnas_d2.layers import InvertedResidual, ShuffleBlock
from detnas_d2.layers.batch_norm_mode import frozen_statistics, use_batch_statistics
from detnas_d2.layers.batch_statistics import BatchNorms
from detnas_d2.layers.fused_residual import mixture
from detnas_d2.layers.fused_shuffle import fused_forward

CHANNELS = (3, 8, 17, 64, 161)


def norms() -> list[_BatchNorm]:
    """With buffers of several dtypes, momenta, and averages over all batches (None)."""
    torch.manual_seed(0)
    found = []
    for c in CHANNELS:
        for momentum in (0.1, 0.03, 0.5, 0.9, 1.0, None):
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                norm = nn.BatchNorm2d(c, momentum=momentum).to(dtype)
                nn.init.normal_(norm.running_mean)
                nn.init.uniform_(norm.running_var)
                norm.num_batches_tracked.fill_(len(found) % 4)
                found.append(norm)
    return found


@torch.no_grad()
def moved(norm: _BatchNorm, stats: ops.BNStats) -> None:
    """What the running statistics of one BatchNorm become."""
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum
    if momentum is None:
        momentum = 1.0 / norm.num_batches_tracked.item()
    n = max(stats.count.item() - 1, 1)
    norm.running_mean.lerp_(stats.mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_((stats.m2 / n).to(norm.running_var.dtype), momentum)


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    for (name, x), y in zip(a.named_buffers(), b.buffers(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_running_statistics_are_those_of_each_by_itself(dtype: torch.dtype) -> None:
    together, alone = nn.ModuleList(norms()), nn.ModuleList(norms())
    for batch in range(3):
        seen = BatchNorms()
        for norm, other in zip(together, alone, strict=True):
            torch.manual_seed(batch)
            x = (3 * torch.randn(2, norm.num_features, 4, 1 + batch) + 1).to(dtype)
            stats = ops.bn_stats(x.requires_grad_())
            counts = (stats.count, int(stats.count))
            seen.consume(norm, stats, counts[norm.num_features % 2])
            moved(other, stats)
        before = [t.clone() for t in together.buffers()]
        assert all(map(torch.equal, together.buffers(), before))  # not until the end
        versions = [t._version for t in together.buffers()]
        seen.update()
        assert all(t._version > v for t, v in zip(together.buffers(), versions, strict=True))
        seen.update()  # nothing is left
        assert_equal(together, alone)


def test_one_that_runs_twice_is_moved_twice_in_order() -> None:
    norm, other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    seen = BatchNorms()
    for scale in (1, 2):
        stats = ops.bn_stats(scale * torch.randn(2, 4, 3, 3))
        seen.consume(norm, stats, 18)
        moved(other, stats)
    seen.update()
    assert_equal(norm, other)
    assert norm.num_batches_tracked == 2


def test_one_value_has_no_variance() -> None:
    stats = ops.bn_stats(torch.randn(1, 4, 1, 1))
    for count in (1, stats.count):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            BatchNorms().consume(nn.BatchNorm2d(4), stats, count)


class Calls(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    options = {"norm": nn.BatchNorm2d, "shuffle_method": 2}
    return nn.Sequential(
        ShuffleBlock(8, 16, op="3x3", stride=2, **options),
        ShuffleBlock(16, 16, op="xception", stride=1, **options),
    )


@pytest.mark.parametrize("recorded", [True, False])
def test_a_forward_pass_moves_all_of_them_at_once(recorded: bool) -> None:
    net, modules = chain(), chain()
    x = torch.randn(2, 8, 9, 7)
    with torch.set_grad_enabled(recorded), Calls() as calls:
        assert fused_forward(None, list(net), None, x, (2,)) is not None
    updates = [name for name in calls.names if "lerp" in name or "add_" in name]
    assert updates == ["aten::_foreach_add_", "aten::_foreach_lerp_"]
    modules(x)
    for (name, a), b in zip(net.named_buffers(), modules.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    before = copy.deepcopy(net)
    with torch.no_grad(), use_batch_statistics(net):
        fused_forward(None, list(net), None, x, (2,))
    with torch.set_grad_enabled(recorded), frozen_statistics(net):
        fused_forward(None, list(net), None, x, (2,))
    assert_equal(net, before)


def test_a_mixture_moves_all_of_them_at_once() -> None:
    torch.manual_seed(0)
    options = {"expansion": 2, "norm": nn.BatchNorm2d}
    candidates, modules = (
        [InvertedResidual(6, 6, kernel=k, **options) for k in (3, 5)] for _ in range(2)
    )
    x: Tensor = torch.randn(2, 6, 7, 8)
    with Calls() as calls:
        mixture(candidates, x, torch.ones(2))
    assert calls.names.count("aten::_foreach_lerp_") == 1
    for module, other in zip(candidates, modules, strict=True):
        other.load_state_dict(module.state_dict())
        for norm in other.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.reset_running_stats()
        other(x)
        for (name, a), b in zip(module.named_buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(a, b, msg=name)
