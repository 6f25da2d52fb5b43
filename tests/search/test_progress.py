"""What a search says while it runs."""

from __future__ import annotations

import json
import logging

import pytest

from detnas_d2.search.evolution import Evolution, EvolutionSettings
from detnas_d2.search.progress import Progress, reported
from tests.helpers import candidate_record


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def record(generation, position, fitness, macs=250_000_000):
    failed = fitness is None
    return candidate_record(
        generation=generation,
        position=position,
        path=f"path {generation} {position}",
        fitness=fitness,
        macs=macs,
        error="boom" if failed else None,
        seconds={} if failed else {"recalibrate": 1.0, "infer": 3.0},
    )


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def progress(tmp_path, clock, caplog):
    caplog.set_level(logging.INFO, logger="detnas_d2.search")
    settings = EvolutionSettings.preset("paper", population=2, generations=3)
    return Progress(Evolution((4,) * 8, settings, seed=0), tmp_path, clock)


def test_candidate_lines(progress, clock, caplog):
    clock.now = 4.0
    progress(record(0, 0, 1.0), size=2, replayed=False)
    clock.now = 10.0
    progress(record(0, 1, 3.0, macs=288_082_368), size=2, replayed=False)
    clock.now = 12.0
    progress(record(1, 0, None), size=2, replayed=False)
    first, second, summary, third = caplog.messages
    assert first == (
        "generation 1/3 candidate 1/2 | fitness 1.0000 | best 1.0000 (250.0M MACs) | "
        "generation mean 1.0000 | ETA 0:00:20 | time: infer 75%, recalibrate 25%"
    )
    assert "fitness 3.0000 | best 3.0000 (288.1M MACs) | generation mean 2.0000" in second
    assert "ETA 0:00:20" in second  # 5 seconds each, 4 left
    assert summary == (
        "generation 1/3 done: best 3.0000 mean 2.0000 std 1.0000 of 2 (0 failed) | "
        "best 3.0000 (288.1M MACs)"
    )
    assert "generation 2/3 candidate 1/2 | failed | best 3.0000 (288.1M MACs)" in third


def test_replayed_candidates_count_but_take_no_time(progress, clock, caplog):
    clock.now = 100.0
    for position in range(2):
        progress(record(0, position, 2.0), size=2, replayed=True)
    assert caplog.messages == []
    assert progress.eta_seconds is None
    clock.now = 107.0
    progress(record(1, 0, 1.0), size=2, replayed=False)
    assert progress.eta_seconds == 7.0 * 3


def test_generations_file(progress, tmp_path):
    for generation, fitness in enumerate([(1.0, 2.0), (None, 1.5), (None, None)]):
        for position, value in enumerate(fitness):
            progress(record(generation, position, value), size=2, replayed=generation == 0)
        written = json.loads((tmp_path / "generations.json").read_text())
        assert len(written) == generation + 1
    assert written[0] == {
        "generation": 0,
        "evaluated": 2,
        "failed": 0,
        "best": 2.0,
        "mean": 1.5,
        "std": 0.5,
        "best_path": "path 0 1",
        "best_macs": 250_000_000,
        "best_so_far": 2.0,
        "seconds": {"recalibrate": 2.0, "infer": 6.0},
    }
    assert [row["failed"] for row in written] == [0, 1, 2]
    assert [row["mean"] for row in written] == [1.5, 1.5, None]
    assert [row["best_so_far"] for row in written] == [2.0, 2.0, 2.0]
    assert [path.name for path in tmp_path.iterdir()] == ["generations.json"]


def test_equal_fitness_keeps_the_earlier_proposal(progress):
    progress(record(0, 1, 2.0), size=2, replayed=False)
    progress(record(0, 0, 2.0), size=2, replayed=False)
    assert progress.summaries[0]["best_path"] == "path 0 0"


def test_long_passes_say_how_far_they_are(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "detnas_d2.search")
    # The first item takes 2 s, the others 4 s each; a message every 10 s at most.
    times = iter([0, 0, *range(2, 100, 4)])
    found = reported(range(8), "inference", every=10, clock=lambda: next(times))
    assert list(found) == list(range(8))
    assert caplog.messages == [
        "inference: 3 batches of 8, 0:00:17 left",  # 10 s for 3
        "inference: 6 batches of 8, 0:00:07 left",  # 22 s for 6
    ]
    caplog.clear()
    times = iter([0, 0, 60, 61])
    assert list(reported(iter("abc"), "x", clock=lambda: next(times))) == ["a", "b", "c"]
    assert caplog.messages == ["x: 1 batches of 3, 0:02:00 left"]
    caplog.clear()
    times = iter([0, 0, 60])
    letters = (letter for letter in "ab")  # of unknown number
    assert list(reported(letters, "x", clock=lambda: next(times))) == ["a", "b"]
    assert caplog.messages == ["x: 1 batches"]
