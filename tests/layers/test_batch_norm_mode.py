"""BatchNorms that normalise with their batch: within a block, whatever their class and mode."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from detectron2.layers import NaiveSyncBatchNorm
from torch import Tensor, nn

from detnas_d2.layers import get_norm
from detnas_d2.layers.batch_norm_mode import (
    frozen_statistics,
    stats_hook,
    use_batch_statistics,
    uses_batch_statistics,
)
from detnas_d2.ops import BNStats
from tests.helpers import changed, snapshot

CLASSES = [nn.BatchNorm2d, nn.SyncBatchNorm, NaiveSyncBatchNorm, lambda c: get_norm("SyncBN", c)]


def model_of(build: Callable[[int], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), build(4), nn.ReLU(), build(4))
    for norm in (model[1], model[3]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
    return model.double()


@pytest.mark.parametrize("build", CLASSES)
@pytest.mark.parametrize("training", [True, False])
def test_every_class_normalises_with_its_batch_and_reports(
    build: Callable[[int], nn.Module], training: bool
) -> None:
    model = model_of(build).train(training)
    before, buffers = snapshot(model), [id(b) for b in model.buffers()]
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    expected = model_of(nn.BatchNorm2d).train()(x)
    seen: list[tuple[str, BNStats]] = []
    with use_batch_statistics(model, lambda name, stats: seen.append((name, stats))):
        for norm in (model[1], model[3]):
            assert uses_batch_statistics(norm) and not norm.training
        torch.testing.assert_close(model(x), expected)
        model(x)
    assert [name for name, _ in seen] == ["1", "3", "1", "3"]
    inner = model[0](x)
    torch.testing.assert_close(seen[0][1].mean, inner.mean((0, 2, 3)))
    assert seen[0][1].count == inner[:, 0].numel()
    assert changed(model, before) == set() and [id(b) for b in model.buffers()] == buffers
    assert [m.training for m in model.modules()] == [training] * 5
    assert stats_hook(model[1]) is None


def test_norms_of_one_model_keep_their_own_modes_and_a_failure_restores_them() -> None:
    model = model_of(nn.BatchNorm2d).train()
    model[1].eval()
    before = snapshot(model)
    with pytest.raises(RuntimeError), use_batch_statistics(model):
        model(torch.randn(2, 3, 7, 6, dtype=torch.float64))
        model(torch.randn(2, 5, 7, 6, dtype=torch.float64))
    assert (model[1].training, model[3].training) == (False, True)
    assert changed(model, before) == set()
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_inputs_of_other_ranks_than_four() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    x = torch.randn(5, 3)
    with use_batch_statistics(model):
        torch.testing.assert_close(model(x), nn.BatchNorm1d(3)(x))
        y: Tensor = model(x[:1])  # a single value has variance 0
        torch.testing.assert_close(y, torch.zeros(1, 3))


def test_frozen_statistics_normalise_as_before() -> None:
    model = model_of(nn.BatchNorm2d).train()
    model[1].eval()
    x, before = torch.randn(2, 3, 7, 6, dtype=torch.float64), snapshot(model)
    with frozen_statistics(model):
        found = model(x)
    assert changed(model, before) == set()
    assert torch.equal(found, model(x))
    assert changed(model, before) == {"3.running_mean", "3.running_var", "3.num_batches_tracked"}
