"""Which candidates a race drops, and when."""

from __future__ import annotations

import math
import random

import pytest

from detnas_d2.search.candidate import CandidateRecord
from detnas_d2.search.evolution import Evolution, EvolutionSettings
from detnas_d2.search.racing import (
    SHARDS_SEEN,
    Race,
    RacingSettings,
    hopeless,
    opponent_of,
    paired_differences,
    shard_metrics,
    shard_scores,
    student_quantile,
)
from tests.helpers import candidate_record


def record(index: int, generation: int, scores: list[float], **changes: object) -> CandidateRecord:
    values = {"fitness": sum(scores) / len(scores), "metrics": shard_metrics(scores), **changes}
    return candidate_record(index, generation=generation, **values)


@pytest.mark.parametrize(
    ("probability", "degrees", "expected"),  # a printed table
    [(0.99, 1, 31.821), (0.99, 2, 6.965), (0.99, 3, 4.541), (0.99, 9, 2.821), (0.95, 7, 1.895)],
)
def test_student_quantile(probability: float, degrees: int, expected: float) -> None:
    assert student_quantile(probability, degrees) == pytest.approx(expected, abs=5e-4)


def test_bound_by_hand() -> None:
    settings = RacingSettings(shards=10, min_shards=3, confidence=0.99)
    # mean -2, standard deviation 1, bound -2 + 6.965 * sqrt(0.7 / 3) = 1.36
    assert not hopeless([-1.0, -2.0, -3.0], 3, settings)
    # four: sd sqrt(2/3), bound -2 + 4.541 * sqrt(2/3 * 0.6 / 4) = -0.56
    assert hopeless([-1.0, -2.0, -3.0, -2.0], 4, settings)
    assert hopeless([-5.0, -5.0, -5.0], 3, settings)
    assert not hopeless([-5.0, -5.0], 2, settings)  # too few
    assert not hopeless([-5.0] * 10, 10, settings)  # all is known by then
    assert not hopeless([5.0, 5.0, 5.0], 3, settings)
    assert not hopeless([-5.0] * 5, 5, RacingSettings(10, 3, confidence=1.0))


def test_wrong_drops_are_rarer_than_the_bound_allows() -> None:
    """Equal candidates, normal shard scores: each look drops at most 1 - confidence of them."""
    rng, settings = random.Random(0), RacingSettings(10, 3, 0.9)
    dropped = 0
    for _ in range(2000):
        scores = [rng.gauss(0, 1) for _ in range(10)]
        scores = [s - sum(scores) / 10 for s in scores]  # equal on all shards together
        dropped += hopeless(scores[:5], 5, settings)
    assert 0.02 < dropped / 2000 < 0.13


def test_undefined_shards_are_left_out() -> None:
    assert paired_differences([1.0, math.nan, 3.0, 4.0], [2.0, 2.0, math.nan, 1.0]) == [-1.0, 3.0]
    assert math.isnan(shard_scores({"racing/shard_0": None})[0])
    assert shard_scores({"bbox/AP": 3.0}) == []


def test_opponent_is_the_worst_of_the_parents_so_far() -> None:
    scores = {0: 30.0, 1: 50.0, 2: 40.0, 3: 20.0}
    records = [record(i, 0, [value, value]) for i, value in scores.items()]
    dropped = record(9, 0, [45.0], metrics={SHARDS_SEEN: 1.0, **shard_metrics([45.0])})
    failed = record(8, 0, [99.0], fitness=None, error="no")
    newer = record(7, 1, [60.0, 60.0])
    records += [dropped, failed, newer]
    assert opponent_of(0, 2, records) is None
    assert opponent_of(1, 2, records).index == 2
    assert opponent_of(1, 9, records).index == 3
    assert opponent_of(2, 2, records).index == 1


def test_judgement() -> None:
    settings = EvolutionSettings.preset(
        "paper", population=4, generations=3, crossover=0, parents=1
    )
    searcher = Evolution((4, 4, 4), settings, seed=0)
    records = [record(0, 1, [50.0, 52.0, 54.0, 56.0])]
    race = Race(RacingSettings(4, 2, 0.95), records, searcher)
    assert race.opponent() is None and race.judge([1.0, 2.0], race.opponent()) is None
    for choices in searcher.ask():
        searcher.tell(choices, 1.0)
    opponent = race.opponent()
    assert opponent is records[0]
    assert race.judge([49.0, 53.0], opponent) is None
    fitness, metrics = race.judge([40.0, 42.0], opponent)
    assert fitness == pytest.approx(53 - 10)
    assert metrics == {SHARDS_SEEN: 2.0, "racing/shard_0": 40.0, "racing/shard_1": 42.0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((10, 1, 0.9), "MIN_SHARDS must be between 2 and SHARDS"),
        ((5, 6, 0.9), r"between 2 and SHARDS \(5\), got 6"),
        ((10, 3, 0.5), "CONFIDENCE must be in"),
        ((10, 3, 1.1), r"\(0.5, 1\], got 1.1"),
    ],
)
def test_wrong_settings_are_named(values: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RacingSettings(*values)
