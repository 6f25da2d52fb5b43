"""What a search says while it runs."""

from __future__ import annotations

import json
import logging

import pytest

from detnas_d2.evaluation.passes import counted, log_pass
from detnas_d2.search.evolution import Evolution, EvolutionSettings
from detnas_d2.search.objectives import Objectives
from detnas_d2.search.progress import Progress
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
        seconds={} if failed else {"recalibration": 1.0, "inference": 3.0},
    )


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def progress(tmp_path, clock, caplog):
    caplog.set_level(logging.INFO, logger="detnas_d2.search")
    settings = EvolutionSettings.preset("paper", population=2, generations=3)
    return Progress(Evolution((4,) * 8, settings, seed=0), tmp_path, clock)


def test_lines_come_at_even_times(progress, clock, caplog):
    clock.now = 4.0
    progress(record(1, 0, 1.0), size=3, replayed=False)
    assert caplog.messages == []
    clock.now = 10.0
    progress(record(1, 1, 3.0, macs=288_082_368), size=3, replayed=False)
    clock.now = 12.0
    progress(record(1, 2, None), size=3, replayed=False)
    line, summary = caplog.messages
    assert line == (
        "generation 1/3: 2 of 3 candidates | best 3.0000 (288.1M MACs) | "
        "generation mean 2.0000 | ETA 0:00:20 | time: inference 75%, recalibration 25%"
    )
    assert summary == (
        "generation 1/3 done: best 3.0000 mean 2.0000 std 1.4142 of 3 (1 failed) | "
        "best 3.0000 (288.1M MACs) | ETA 0:00:12"  # 4 seconds each, 3 of 6 left
    )


def test_each_candidate_is_in_the_log_file(progress, caplog):
    caplog.set_level(logging.DEBUG, logger="detnas_d2.search")
    progress(record(1, 0, 1.0), size=3, replayed=False)
    progress(record(1, 1, None), size=3, replayed=False)
    assert caplog.messages == [
        "generation 1 candidate 1/3 path 1 0: fitness 1.0000",
        "generation 1 candidate 2/3 path 1 1: failed",
    ]


def test_lines_are_even_while_candidates_finish_together(progress, clock, caplog):
    """Chunks of two; a second per batch, three batches of calibration, nine of inference."""
    etas = []
    for generation in (1, 2, 3):
        for stage, batches in (("recalibration", 3), ("inference", 9)):
            for done in range(1, batches + 1):
                clock.now += 1.0
                progress.passed(stage, 2, done, batches)
                etas.append((clock.now, progress.eta_seconds))
        for position in range(2):
            progress(record(generation, position, 1.0), size=2, replayed=False)
    assert caplog.messages[0] == (
        "generation 1/3: 0 of 2 candidates | inference 78% | best - | generation mean - | "
        "ETA 0:00:24"  # the shares of the passes are not known yet
    )
    assert [message.split(" | ")[0][:17] for message in caplog.messages] == [
        "generation 1/3: 0",
        "generation 1/3 do",
        "generation 2/3: 0",
        "generation 2/3 do",
        "generation 3/3: 0",
        "generation 3/3 do",
    ]
    # From the second generation on: 36 seconds in all, at every moment.
    assert all(now + eta == pytest.approx(36.0) for now, eta in etas[12:])
    assert caplog.messages[-1].endswith("ETA 0:00:00")


def test_how_far_it_is_is_told(tmp_path, clock):
    told = []
    settings = EvolutionSettings.preset("paper", population=2, generations=3)
    searcher = Evolution((4,) * 8, settings, seed=0)
    progress = Progress(searcher, tmp_path, clock, tell=lambda *about: told.append(about))
    progress(record(1, 0, 1.0), size=2, replayed=True)
    clock.now = 6.0
    progress.passed("recalibration", 1, 1, 2)  # half of one of two passes
    clock.now = 10.0
    progress(record(1, 1, 3.0, macs=288_082_368), size=2, replayed=False)
    assert told == [
        (1.0, 6, None, "best 1.0000 (250.0M MACs)"),
        (1.25, 6, 6.0 / 0.25 * 4.75, "best 1.0000 (250.0M MACs)"),
        (2.0, 6, 40.0, "best 3.0000 (288.1M MACs)"),
    ]


def test_long_searches_say_less(progress, clock, caplog):
    for _ in range(200):
        clock.now += 10.0
        progress.passed("inference", 2, 1, 9)
    assert len(caplog.messages) == 59 + 23  # every ten seconds, from 600 s on every minute


def test_replayed_candidates_count_but_take_no_time(progress, clock, caplog):
    clock.now = 100.0
    for position in range(2):
        progress(record(1, position, 2.0), size=2, replayed=True)
    assert caplog.messages == []
    assert progress.eta_seconds is None
    clock.now = 107.0
    progress(record(2, 0, 1.0), size=2, replayed=False)
    assert progress.eta_seconds == 7.0 * 3


def test_generations_file(progress, tmp_path):
    for generation, fitness in enumerate([(1.0, 2.0), (None, 1.5), (None, None)], 1):
        for position, value in enumerate(fitness):
            progress(record(generation, position, value), size=2, replayed=generation == 1)
        written = json.loads((tmp_path / "generations.json").read_text())
        assert len(written) == generation
    assert written[0] == {
        "generation": 1,
        "evaluated": 2,
        "failed": 0,
        "best": 2.0,
        "mean": 1.5,
        "std": pytest.approx(0.5**0.5),
        "best_path": "path 1 1",
        "best_macs": 250_000_000,
        "best_so_far": 2.0,
        "seconds": {"recalibration": 2.0, "inference": 6.0},
    }
    assert [row["failed"] for row in written] == [0, 1, 2]
    assert [row["mean"] for row in written] == [1.5, 1.5, None]
    assert [row["best_so_far"] for row in written] == [2.0, 2.0, 2.0]
    assert [path.name for path in tmp_path.iterdir()] == ["generations.json"]


def test_generations_of_several_objectives(tmp_path, clock, caplog):
    caplog.set_level(logging.INFO, logger="detnas_d2.search")
    settings = EvolutionSettings.preset("paper", population=2, generations=3)
    searcher = Evolution((4,) * 8, settings, seed=0)
    objectives = Objectives(("macs",), (0,), (100,))
    progress = Progress(searcher, tmp_path, clock, objectives=objectives)
    for generation, points in enumerate([((2.0, 50), (None, 10)), ((1.0, 25), (1.5, 60))], 1):
        for position, (fitness, macs) in enumerate(points):
            told = record(generation, position, fitness, macs)
            progress(told, size=2, replayed=generation == 1)
    written = json.loads((tmp_path / "generations.json").read_text())
    assert [(row["front"], row["hypervolume"]) for row in written] == [(1, 1.0), (2, 1.25)]
    assert "front of 2, hypervolume 1.2500" in caplog.text


def test_equal_fitness_keeps_the_earlier_proposal(progress):
    progress(record(1, 1, 2.0), size=2, replayed=False)
    progress(record(1, 0, 2.0), size=2, replayed=False)
    assert progress.summaries[0]["best_path"] == "path 1 0"


def test_items_are_counted() -> None:
    steps = []
    assert list(counted("abc", lambda *step: steps.append(step))) == ["a", "b", "c"]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    steps.clear()
    letters = (letter for letter in "ab")  # of unknown number
    assert list(counted(letters, lambda *step: steps.append(step))) == ["a", "b"]
    assert steps == [(1, 0), (2, 0)]


def test_passes_outside_a_search_say_how_far_they_are(clock, caplog, monkeypatch) -> None:
    caplog.set_level(logging.INFO, "detnas_d2.search")
    monkeypatch.setattr("detectron2.utils.logger.time.time", clock)
    monkeypatch.setattr("detectron2.utils.logger._LOG_TIMER", {})
    for done in range(1, 9):
        clock.now += 25.0
        log_pass("inference", 4, done, 8)
    log_pass("inference", 4, 9, 0)
    clock.now += 61.0
    log_pass("recalibration", 4, 2, 0)  # of unknown number
    assert caplog.messages == [
        "inference of 4 candidates: 1 of 8 batches",
        "inference of 4 candidates: 4 of 8 batches",
        "inference of 4 candidates: 7 of 8 batches",
        "recalibration of 4 candidates: 2 batches",
    ]
