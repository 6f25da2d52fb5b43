"""Calibration batches that run together: which do, and that statistics are those of one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detnas_d2.evaluation import prefix_statistics
from detnas_d2.evaluation.calibration_steps import CalibrationSteps
from detnas_d2.evaluation.prefix_statistics import recalibrate_population
from detnas_d2.modeling import find_supernet
from detnas_d2.utils.errors import CandidateFailed
from tests.evaluation.test_prefix_statistics import assert_equal, detector, population
from tests.helpers import training_batch

WIDE, HIGH = ((64, 96), (64, 96)), ((96, 64), (70, 64))


def batches(*sizes: tuple) -> list[tuple[int, list[dict]]]:
    generator = torch.Generator().manual_seed(5)
    made = (training_batch(sizes=s, generator=generator) for s in sizes)
    return [(3 * i + 1, batch) for i, batch in enumerate(made)]


DATA = (WIDE, WIDE, WIDE, HIGH, WIDE, (WIDE[0],), (WIDE[0],))


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (0, [1, 1, 1, 1, 1, 1, 1]),  # a CPU
        (1, [1, 1, 1, 1, 1, 1, 1]),
        (2, [2, 1, 1, 1, 2]),
        (9, [3, 1, 1, 2]),
    ],
)
def test_batches_of_one_size_in_a_row_make_a_step(most: int, expected: list[int]) -> None:
    steps = list(CalibrationSteps(detector("backbone only"), batches(*DATA), most))
    assert [len(step.numbers) for step in steps] == expected
    assert [n for step in steps for n in step.numbers] == [1, 4, 7, 10, 13, 16, 19]
    assert all(len(step.alone) == len(step.numbers) for step in steps)


@pytest.mark.parametrize("name", ["neck", "neck and head"])
def test_others_than_a_supernet_take_one_batch_at_a_time(name: str) -> None:
    steps = list(CalibrationSteps(detector(name), batches(*DATA), 9))
    assert [len(step.numbers) for step in steps] == [1] * 7


def test_by_default_a_gpu_takes_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "is_cuda", True)
    steps = CalibrationSteps(detector("backbone only"), [], 0)
    assert steps._limit(torch.empty(1, 3, 1024, 1024, device="meta")) == 8
    assert steps._limit(torch.empty(8, 3, 1024, 1216, device="meta")) == 1
    assert steps._limit(torch.empty(2, 3, 64, 96, device="meta")) == 682


@pytest.mark.parametrize("name", ["backbone only", "fused"])
def test_statistics_are_those_of_one_by_one(name: str) -> None:
    model, paths = detector(name), population(7, seed=1)
    shapes = []
    find_supernet(model).register_forward_pre_hook(lambda _, x: shapes.append(x[0].shape[0]))
    found = recalibrate_population(model, paths, batches(*DATA), seed=2, together=9)
    assert set(shapes) == {6, 2}
    expected = recalibrate_population(model, paths, batches(*DATA), seed=2, together=1)
    for path in paths:
        assert_equal(found[path], expected[path])


def test_where_memory_is_short_batches_run_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, paths = detector("fused"), population(5, seed=3)
    expected = recalibrate_population(model, paths, batches(*DATA), seed=2, together=1)
    net, seen = find_supernet(model), []
    inner = net.forward

    def forward(x: Tensor) -> dict[str, Tensor]:
        seen.append(len(x))
        if len(x) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return inner(x)

    monkeypatch.setattr(net, "forward", forward)
    found = recalibrate_population(model, paths, batches(*DATA), seed=2, together=3)
    for path in paths:
        assert_equal(found[path], expected[path])
    # Every path of the first step tries all three batches; afterwards nothing does.
    first = [6, 2, 2, 2] * len(set(paths))
    assert seen[: len(first)] == first and max(seen[len(first) :]) == 2


def test_a_failure_among_several_batches_is_its_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    model, paths = detector("fused"), population(5, seed=4)
    expected = recalibrate_population(model, paths, batches(*DATA), seed=2, together=1)
    run = prefix_statistics.CalibrationStep.run
    bad = sorted(set(paths), key=lambda path: path.choices)[1]

    def failing(step: object, seed: int) -> None:
        run(step, seed)
        if find_supernet(model).active_path == bad:
            raise RuntimeError("CUDA error")

    monkeypatch.setattr(prefix_statistics.CalibrationStep, "run", failing)
    found = recalibrate_population(model, paths, batches(*DATA), seed=2, together=3)
    assert isinstance(found[bad], CandidateFailed)
    for path in set(paths) - {bad}:
        assert_equal(found[path], expected[path])
