"""Diagnostics of a search: how it went, and what it chose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from detnas_d2.config.values import COSTS
from detnas_d2.evaluation.candidate import CandidateRecord
from detnas_d2.search.dominance import dominance_ranks
from detnas_d2.utils.errors import InputError


def choice_frequencies(
    records: Iterable[CandidateRecord],
) -> dict[int, tuple[dict[str, float], ...]]:
    """Generation -> for each layer the share of its candidates with each operation.

    Operations are in index order; those that no candidate of the history has in a layer are left
    out there. The shares of a layer add up to 1. Failed candidates count, they were proposed.
    """
    records = list(records)
    names: list[dict[int, str]] = []
    for record in records:
        ops = record.path.replace("/", " ").split()
        names += [{} for _ in range(len(ops) - len(names))]
        for layer, (choice, op) in enumerate(zip(record.choices, ops, strict=True)):
            names[layer][choice] = op
    frequencies = {}
    for generation in sorted({record.generation for record in records}):
        members = [record.choices for record in records if record.generation == generation]
        layers = []
        for layer, column in enumerate(zip(*members, strict=True)):
            counts = Counter(column)
            layers.append({names[layer][c]: counts[c] / len(column) for c in sorted(names[layer])})
        frequencies[generation] = tuple(layers)
    return frequencies


def fitness_by_generation(records: Iterable[CandidateRecord]) -> dict[int, list[float]]:
    """Generation -> fitness of its candidates that have one, in order of evaluation."""
    found: dict[int, list[float]] = {}
    for record in sorted(records, key=lambda record: (record.generation, record.index)):
        values = found.setdefault(record.generation, [])
        if record.fitness is not None:
            values.append(record.fitness)
    return found


def pareto_front(records: Iterable[CandidateRecord], *costs: str) -> list[CandidateRecord]:
    """The evaluated candidates that no other dominates: none is at least as good in fitness and
    every cost, and better in one. The cheapest by the first cost first.

    Of candidates with the same fitness and costs the one that was proposed first is taken.

    Args:
        costs: of :data:`COSTS`, one or more.

    Raises:
        InputError: an unknown cost, or one that the search did not record.
    """
    for cost in costs:
        if cost not in COSTS:
            raise InputError(f"cost {cost!r}: expected one of {', '.join(COSTS)}")
    alive = [record for record in records if record.fitness is not None]
    for cost in costs:
        if any(getattr(record, cost) is None for record in alive):
            raise InputError(
                f"the search did not record {cost} (latency_ms: SEARCH.MAX_LATENCY_MS, or in "
                "SEARCH.OBJECTIVES)"
            )
    if not alive:
        return []

    def point(record: CandidateRecord) -> tuple[float, ...]:
        return (*(getattr(record, cost) for cost in costs), record.rank_key[0])

    alive.sort(key=lambda record: (point(record), record.rank_key))
    points = [point(record) for record in alive]
    front: dict[tuple[float, ...], CandidateRecord] = {}
    for place, rank in enumerate(dominance_ranks(np.array(points, float))):
        if rank == 0:
            front.setdefault(points[place], alive[place])
    return list(front.values())
