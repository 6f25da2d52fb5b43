"""Diagnostics of a finished search: what it chose, and whether its fitness ranks networks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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


def spread_over_fitness(records: Iterable[CandidateRecord], count: int) -> list[CandidateRecord]:
    """``count`` of the evaluated candidates, evenly spread by rank of fitness, best first.

    Raises:
        ValueError: fewer were evaluated, or fewer than two are asked for.
    """
    alive = [record for record in records if record.fitness is not None]
    ranked = sorted(alive, key=lambda record: record.rank_key)
    if not 2 <= count <= len(ranked):
        raise InputError(f"{count} candidates: expected 2 to {len(ranked)}, as many have a fitness")
    return [ranked[round(i * (len(ranked) - 1) / (count - 1))] for i in range(count)]


@dataclass(frozen=True)
class RankCorrelation:
    """Agreement of two scores in the order of networks.

    Attributes:
        networks: number of networks.
        kendall: Kendall's tau-b, in [-1, 1]; NaN if all values of a score are equal.
        spearman: Spearman's rho, likewise.
        kendall_p, spearman_p: probability of a value at least as far from 0 by chance.
    """

    networks: int
    kendall: float
    kendall_p: float
    spearman: float
    spearman_p: float


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> RankCorrelation:
    """Rank correlation of two scores of the same networks, in the same order.

    Raises:
        ValueError: scores of different length, fewer than two networks, or a NaN score.
    """
    from scipy import stats  # here, so that a search does not need it

    if len(first) != len(second) or len(first) < 2:
        raise InputError(
            f"{len(first)} and {len(second)} scores: expected those of the same networks, "
            "two or more"
        )
    if any(math.isnan(value) for value in (*first, *second)):
        raise InputError("a score is NaN: leave failed networks out")
    if len(set(first)) == 1 or len(set(second)) == 1:
        return RankCorrelation(len(first), *[math.nan] * 4)
    kendall, spearman = stats.kendalltau(first, second), stats.spearmanr(first, second)
    values = (kendall.statistic, kendall.pvalue, spearman.statistic, spearman.pvalue)
    return RankCorrelation(len(first), *map(float, values))


def paired_scores(
    records: Iterable[CandidateRecord], standalone: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Path -> (supernet fitness, stand-alone score).

    Args:
        records: history of a search.
        standalone: path text -> score of the network trained by itself; ``/`` and blanks in the
            text do not matter.

    Raises:
        KeyError: naming the paths that the history does not have, or that failed in it.
    """
    fitness = {_key(r.path): r.fitness for r in records if r.fitness is not None}
    unknown = [path for path in standalone if _key(path) not in fitness]
    if unknown:
        raise InputError(f"{len(unknown)} paths have no fitness in the history: {unknown}")
    return {path: (fitness[_key(path)], float(score)) for path, score in standalone.items()}


def _key(path: str) -> str:
    return " ".join(path.replace("/", " ").split())
