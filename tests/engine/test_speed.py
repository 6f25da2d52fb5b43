"""Speeds measured on a few steps, some of them while the machine was busy."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detnas_d2.engine import speed


class Clock:
    """Seconds that only pass where a test lets them."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    return clock


class Step:
    """A step whose iterations take these seconds, one after the other."""

    def __init__(self, clock: Clock, seconds: list[float]) -> None:
        self.clock, self.seconds, self.done = clock, iter(seconds), 0
        self.model, self.iter = torch.nn.Linear(1, 1), 0

    def set_data(self, data: Any) -> None: ...

    def run_step(self) -> None:
        assert self.iter == self.done  # batches and paths are those of the iteration
        self.done += 1
        self.clock.now += next(self.seconds)


def test_a_busy_second_is_not_an_iteration(clock: Clock) -> None:
    step = Step(clock, [9.0, 9.0, 0.1, 0.1, 5.0, 0.1, 0.2])
    trainer: Any = SimpleNamespace(step=step, batches=lambda start: [])
    assert speed.step_seconds(trainer) == pytest.approx(0.1) and step.done == 7
    # No further one begins after the limit.
    step = Step(clock, [0.1, 0.1, 1.0, 3.0, 1.0, 1.0])
    trainer.step = step
    assert speed.step_seconds(trainer, limit=3.5) == pytest.approx(2.0) and step.done == 4


@pytest.mark.parametrize("size", [1, 16])  # of a batch, three of which are looked at
def test_a_busy_second_is_not_an_image(
    size: int, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Model(torch.nn.Linear):
        def forward(self, inputs: list[float]) -> None:  # type: ignore[override]
            clock.now += inputs[0] * len(inputs)

    def loader(cfg: Any, name: str) -> Iterator[list[float]]:
        seconds = {"a": [0.1, 4.0, 0.1, 0.1], "b": [0.3, 0.3, 9.0, 9.0, 9.0]}[name]
        yield from ([second] * size for second in seconds)

    monkeypatch.setattr(speed, "build_test_loader", loader)
    cfg: Any = SimpleNamespace(DATASETS=SimpleNamespace(TEST=("a", "b")))
    assert speed.image_seconds(cfg, Model(1, 1), images=3) == pytest.approx(0.2)
