"""Diagnostics of a search: how it went, and what it chose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from detnas_d2.evaluation.candidate import CandidateRecord
from detnas_d2.utils.errors import InputError

COSTS = ("macs", "params", "latency_ms")


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


def pareto_front(records: Iterable[CandidateRecord], cost: str) -> list[CandidateRecord]:
    """The evaluated candidates that none is fitter than at the same cost or less, cheapest first.

    Of equally fit ones the cheapest, of equally cheap ones the first is taken.

    Args:
        cost: one of :data:`COSTS`.

    Raises:
        ValueError: an unknown cost, or one that the search did not record.
    """
    if cost not in COSTS:
        raise InputError(f"cost {cost!r}: expected one of {', '.join(COSTS)}")
    alive = [record for record in records if record.fitness is not None]
    if any(getattr(record, cost) is None for record in alive):
        raise InputError(f"the search did not record {cost} (latency_ms: SEARCH.MAX_LATENCY_MS)")
    front: list[CandidateRecord] = []
    for record in sorted(alive, key=lambda r: (getattr(r, cost), r.rank_key)):
        if not front or record.rank_key[0] < front[-1].rank_key[0]:
            front.append(record)
    return front
