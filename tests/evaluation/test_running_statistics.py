"""detnas_d2.recalibrate: running statistics of any model, against two passes and against fvcore."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fvcore.nn.precise_bn import update_bn_stats
from torch import Tensor, nn

import detnas_d2
from detnas_d2.evaluation.recalibration import BNStatistics
from detnas_d2.layers.batch_norm_mode import batch_norms
from detnas_d2.modeling import activate
from tests.evaluation.test_recalibration import (
    batches,
    check,
    detector,
    path,
    recorded_inputs,
)
from tests.helpers import changed, snapshot


class Net(nn.Module):
    """Shared, unused and sometimes used BatchNorms, of maps, vectors and volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.shared = nn.BatchNorm2d(4)
        self.alias = self.shared
        self.wide = nn.BatchNorm2d(4, momentum=None)  # of wide maps only
        self.unused = nn.BatchNorm2d(4)
        self.without = nn.BatchNorm2d(4, track_running_stats=False)
        self.volume = nn.BatchNorm3d(4)
        self.vector = nn.BatchNorm1d(4, affine=False)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = self.shared(y) + self.alias(2 * y + 1)
        if x.shape[3] > 10:
            y = self.wide(y)
        y = self.volume(self.without(y).unsqueeze(2)).squeeze(2)
        return self.drop(self.vector(y.mean((2, 3))))


def net(seed: int = 0, kind: Callable[[], nn.Module] = Net) -> nn.Module:
    """Its BatchNorms have seen something."""
    torch.manual_seed(seed)
    model = kind()
    for norm in batch_norms(model).values():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.num_batches_tracked.fill_(7)
    return model


def images(seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((3, 7, 9), (2, 9, 13), (5, 8, 6))
    return [torch.randn(n, 3, h, w, generator=generator) * n + 1 for n, h, w in sizes]


def check_written(model: nn.Module, statistics: BNStatistics) -> None:
    norms = batch_norms(model)
    for name, moments in statistics.moments.items():
        torch.testing.assert_close(norms[name].running_mean, moments.mean.float())
        torch.testing.assert_close(norms[name].running_var, moments.variance.float())


@pytest.mark.parametrize("training", [True, False])
def test_they_are_those_of_everything_that_was_seen_and_nothing_else_changes(
    training: bool,
) -> None:
    model = net().train(training)
    before = snapshot(model)
    with recorded_inputs(model) as inputs:
        statistics = detnas_d2.recalibrate(model, images())
    check(statistics, inputs)
    check_written(model, statistics)
    assert set(inputs) == {"stem.1", "shared", "wide", "volume", "vector"}
    assert changed(model, before) == {
        f"{name}.{kind}" for name in (*inputs, "alias") for kind in ("running_mean", "running_var")
    }
    assert all(module.training == training for module in model.modules())
    assert all(norm.momentum in (0.1, None) for norm in batch_norms(model).values())


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5)
    )


def test_it_is_what_fvcore_computes_where_fvcore_can() -> None:
    model = net(3, plain).double().train()
    theirs, data = copy.deepcopy(model), [x.double() for x in images()]
    statistics = detnas_d2.recalibrate(model, data, len(data))
    update_bn_stats(theirs, data, len(data))
    for name, norm in batch_norms(model).items():
        other, n = batch_norms(theirs)[name], statistics.moments[name].count
        torch.testing.assert_close(norm.running_mean, other.running_mean)
        biased = norm.running_var * (n - 1) / n  # as fvcore's is
        torch.testing.assert_close(biased, other.running_var)


def test_frozen_batch_norms_of_a_model_in_training_are_left_alone_and_used() -> None:
    model = net(4, plain).train()
    model[1].eval()
    before, (x, *_) = snapshot(model), images()
    expected = model[3](torch.relu(model[1](model[0](x)))).detach()
    statistics = detnas_d2.recalibrate(model, [x])
    assert list(statistics.moments) == ["4"]
    assert changed(model, before) == {"4.running_mean", "4.running_var"}
    torch.testing.assert_close(model[4].running_mean, expected.mean((0, 2, 3)))
    assert model[4].training and not model[1].training


def test_number_of_batches_and_another_way_to_run_them() -> None:
    def endless() -> Iterator[tuple[Tensor, int]]:
        for i in count():
            taken.append(i)
            yield torch.full((2, 3, 5, 5), float(i)), i

    taken: list[int] = []
    model = nn.Sequential(nn.BatchNorm2d(3))
    found = detnas_d2.recalibrate(model, endless(), 4, forward=lambda batch: model(batch[0]))
    assert found.moments["0"].count == 4 * 50 and taken == [0, 1, 2, 3]
    assert model[0].running_mean.tolist() == [1.5] * 3
    torch.testing.assert_close(model[0].running_var, torch.full((3,), 1.25 * 200 / 199))


def test_wrong_input_and_failures_leave_the_model_as_it_was() -> None:
    model = net().train()
    before = snapshot(model)

    def fail(x: Tensor) -> None:
        model(x)
        raise ZeroDivisionError

    with pytest.raises(ValueError, match="batches: expected at least one, got 0"):
        detnas_d2.recalibrate(model, [])
    with pytest.raises(ValueError, match="batches: expected 4 in each process, got 3"):
        detnas_d2.recalibrate(model, images(), 4)
    with pytest.raises(ZeroDivisionError):
        detnas_d2.recalibrate(model, images(), forward=fail)
    with pytest.raises(FloatingPointError, match=r"stem\.1 are not finite"):
        detnas_d2.recalibrate(model, [torch.full((1, 3, 5, 5), float("nan"))])
    assert changed(model, before) == set()
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_saw_nothing_keeps_what_it_has_and_models_without_batch_norm_run_nothing() -> None:
    model = net(5, plain).eval()
    before = snapshot(model)
    detnas_d2.recalibrate(model, [torch.zeros(0, 3, 5, 5)])
    assert changed(model, before) == set()
    found = detnas_d2.recalibrate(nn.Sequential(nn.GroupNorm(1, 3)), images(), forward=fail_always)
    assert found.moments == {}


def fail_always(batch: object) -> None:
    raise AssertionError("nothing has to run")


@pytest.mark.parametrize("kind", ["faster", "retinanet"])
def test_a_path_of_a_detector_in_training(kind: str) -> None:
    model = detector(kind, norm="BN")
    model.train()
    data, before = [batch for _, batch in batches()], snapshot(model)
    with activate(model, path(1)), recorded_inputs(model) as inputs:
        statistics = detnas_d2.recalibrate(model, data)
    check(statistics, inputs)
    check_written(model, statistics)
    written = {name.rpartition(".")[0] for name in changed(model, before)}
    assert written == set(inputs) < set(batch_norms(model))  # those of other paths are as before


def test_it_is_imported_only_when_it_is_asked_for() -> None:
    code = """
import sys, detnas_d2
assert "torch" not in sys.modules
from detnas_d2 import recalibrate
from detnas_d2.evaluation.running_statistics import recalibrate as same
assert recalibrate is same and detnas_d2.recalibrate is same
try:
    detnas_d2.other
except AttributeError as error:
    assert str(error) == "module 'detnas_d2' has no attribute 'other'"
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=2)
    model = net(3, plain).train()
    detnas_d2.recalibrate(model, images()[rank::2])
    torch.save(model.state_dict(), Path(folder, f"{rank}.pth"))
    try:
        detnas_d2.recalibrate(model, images()[rank::2], 2)
    except ValueError as error:
        assert "expected 2 in each process, got 1" in str(error)
    else:
        raise AssertionError
    dist.destroy_process_group()


def test_processes_share_what_they_see(tmp_path: Path) -> None:
    mp.spawn(_work, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    model = net(3, plain).train()
    detnas_d2.recalibrate(model, images())
    for name, value in model.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value)
