"""Choice frequencies and rank correlation by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest

from detnas_d2.search.diagnostics import (
    choice_frequencies,
    fitness_by_generation,
    paired_scores,
    pareto_front,
    rank_correlation,
    spread_over_fitness,
)
from detnas_d2.search.history import History
from tests.helpers import candidate_record

OPS = ("a", "b", "c")


def record(index: int, generation: int, choices: tuple[int, ...], fitness: float | None):
    return candidate_record(
        index,
        generation=generation,
        path=f"{OPS[choices[0]]} / {OPS[choices[1]]}",
        choices=choices,
        fitness=fitness,
        error=None if fitness is not None else "RuntimeError: out of memory",
    )


RECORDS = [
    record(0, 1, (0, 0), 1.0),
    record(1, 1, (2, 0), 2.0),
    record(2, 1, (0, 1), None),
    record(3, 1, (0, 2), 4.0),
    record(4, 2, (2, 1), 5.0),
    record(5, 2, (2, 2), 6.0),
]


def test_choice_frequencies() -> None:
    assert choice_frequencies(RECORDS) == {
        1: ({"a": 0.75, "c": 0.25}, {"a": 0.5, "b": 0.25, "c": 0.25}),
        2: ({"a": 0.0, "c": 1.0}, {"a": 0.0, "b": 0.5, "c": 0.5}),
    }
    assert list(choice_frequencies(RECORDS)[2][1]) == ["a", "b", "c"]
    assert choice_frequencies([]) == {}


def test_fitness_by_generation() -> None:
    # Evaluated out of order, one failed.
    assert fitness_by_generation(reversed(RECORDS)) == {1: [1.0, 2.0, 4.0], 2: [5.0, 6.0]}
    assert fitness_by_generation([record(0, 1, (0, 0), None)]) == {1: []}


def test_pareto_front() -> None:
    # (MACs, fitness): 3 beats 1 at its cost, 2 is beaten by the cheaper 4, 5 only ties with 4.
    values = [(10, 1.0), (20, 2.0), (30, 2.5), (20, 3.0), (25, 4.0), (40, 4.0), (50, 6.0)]
    records = [
        dataclasses.replace(record(i, 1, (0, 0), fitness), macs=macs)
        for i, (macs, fitness) in enumerate(values)
    ]
    failed = record(7, 1, (0, 1), None)
    assert [r.index for r in pareto_front([*reversed(records), failed], "macs")] == [0, 3, 4, 6]
    assert pareto_front([failed], "macs") == []
    with pytest.raises(ValueError, match="did not record latency_ms"):
        pareto_front(records, "latency_ms")
    with pytest.raises(ValueError, match="'seconds': expected one of macs, params, latency_ms"):
        pareto_front(records, "seconds")


def test_rank_correlation() -> None:
    # Of the ten pairs, (2, 3) and (4, 5) are in the wrong order: tau = (8 - 2) / 10.
    # rho = 1 - 6 * (0 + 1 + 1 + 1 + 1) / (5 * 24).
    result = rank_correlation([1, 2, 3, 4, 5], [10, 30, 20, 50, 40])
    assert result.networks == 5
    assert result.kendall == pytest.approx(0.6)
    assert result.spearman == pytest.approx(0.8)
    # Of the 120 orders 1, 4 and 9 have 0, 1 and 2 wrong pairs, as many 10, 9 and 8.
    assert result.kendall_p == pytest.approx(28 / 120)
    reverse = rank_correlation([1, 2, 3], [3, 2, 1])
    assert (reverse.kendall, reverse.spearman) == (pytest.approx(-1), pytest.approx(-1))


def test_rank_correlation_of_ties() -> None:
    # tau-b: five pairs in order, one tied: 5 / sqrt(6 * 5).
    result = rank_correlation([1, 2, 3, 4], [1, 2, 2, 3])
    assert result.kendall == pytest.approx(5 / math.sqrt(30))
    assert math.isnan(rank_correlation([1, 2, 3], [7, 7, 7]).kendall)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [([1], [1], "two or more"), ([1, 2], [1], "2 and 1"), ([1, 2], [1, math.nan], "NaN")],
)
def test_bad_scores(first: list[float], second: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_correlation(first, second)


def test_paired_scores() -> None:
    pairs = paired_scores(RECORDS, {"c/b": 30, "a  a": 20})
    assert pairs == {"c/b": (5.0, 30.0), "a  a": (1.0, 20.0)}
    # One path failed, the other was never proposed.
    with pytest.raises(ValueError, match="2 paths.*'a / b', 'b / b'"):
        paired_scores(RECORDS, {"a / b": 1, "c / a": 2, "b / b": 3})


def test_candidates_spread_over_fitness() -> None:
    # Fitness 6, 5, 4, 2, 1; one candidate failed.
    def found(count: int) -> list[float]:
        return [record.fitness for record in spread_over_fitness(RECORDS, count)]

    assert found(2) == [6, 1]
    assert found(3) == [6, 4, 1]
    assert found(5) == [6, 5, 4, 2, 1]
    for count in (1, 6):
        with pytest.raises(ValueError, match=f"{count} candidates: expected 2 to 5"):
            found(count)


def test_ties_are_in_order_of_proposal() -> None:
    """However the evaluations finished, so that equal searches choose the same."""
    ties = [candidate_record(i, position=(2, 0, 1)[i], macs=5) for i in range(3)]
    assert [r.position for r in spread_over_fitness(ties, 3)] == [0, 1, 2]
    assert [r.position for r in History.in_memory(ties).best(3)] == [0, 1, 2]
    assert [r.position for r in pareto_front(ties, "macs")] == [0]
