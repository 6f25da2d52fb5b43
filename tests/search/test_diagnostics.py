"""Choice frequencies and fronts by hand."""

from __future__ import annotations

import dataclasses

import pytest

from detnas_d2.search.diagnostics import (
    choice_frequencies,
    fitness_by_generation,
    pareto_front,
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


def test_ties_are_in_order_of_proposal() -> None:
    """However the evaluations finished, so that equal searches choose the same."""
    ties = [candidate_record(i, position=(2, 0, 1)[i], macs=5) for i in range(3)]
    assert [r.position for r in History.in_memory(ties).best(3)] == [0, 1, 2]
    assert [r.position for r in pareto_front(ties, "macs")] == [0]
