"""Fitness and costs that a search trades against each other: the front of its candidates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from detnas_d2.evaluation.candidate import CandidateRecord
from detnas_d2.search.constraints import Constraint
from detnas_d2.search.diagnostics import pareto_front
from detnas_d2.search.dominance import hypervolume
from detnas_d2.utils.errors import InputError


@dataclass(frozen=True)
class Objectives:
    """What a search of several objectives looks for, and what it recommends of what it found.

    Attributes:
        costs: that are minimised besides the fitness, which is maximised: of
            :data:`detnas_d2.config.values.COSTS`.
        least, most: of each cost, what paths have within the limit of that cost.
        budgets: of the first cost, for each of which a candidate is recommended.
    """

    costs: tuple[str, ...]
    least: tuple[float, ...]
    most: tuple[float, ...]
    budgets: tuple[float, ...] = ()

    @classmethod
    def within(
        cls, costs: Sequence[str], constraint: Constraint, budgets: Sequence[float] = ()
    ) -> Objectives:
        """The objectives of a search within limits.

        Args:
            constraint: with the tables of all costs.

        Raises:
            InputError: all paths cost the same, or more than a budget.
        """
        ranges = [constraint.range_of(cost) for cost in costs]
        for cost, (low, high) in zip(costs, ranges, strict=True):
            if not low < high:
                raise InputError(
                    f"SEARCH.OBJECTIVES has {cost!r}, but all paths within {constraint} have "
                    f"{low:g} {cost}: there is nothing to trade"
                )
        for budget in budgets:
            if budget < ranges[0][0]:
                raise InputError(
                    f"SEARCH.BUDGETS has {budget:g}, but the cheapest path within {constraint} has "
                    f"{ranges[0][0]:g} {costs[0]}"
                )
        least, most = zip(*ranges, strict=True)
        return cls(tuple(costs), least, most, tuple(budgets))

    def front(self, records: Iterable[CandidateRecord]) -> list[CandidateRecord]:
        """See :func:`pareto_front`."""
        return pareto_front(records, *self.costs)

    def costs_of(self, record: CandidateRecord) -> tuple[float, ...]:
        return tuple(getattr(record, cost) for cost in self.costs)

    def hypervolume(self, records: Iterable[CandidateRecord]) -> float:
        """Mean, over all budgets, of the highest fitness within the budget.

        Budgets are uniform between ``least`` and ``most`` of every cost, and where nothing is
        within them, or its fitness is below 0, 0 counts. This is the hypervolume with the reference
        point of fitness 0 and ``most`` of every cost, divided by the range of the costs: both are
        known before the search, so values of different generations and seeds compare.
        """
        return self.hypervolume_of(
            (record.fitness, *self.costs_of(record))
            for record in records
            if record.fitness is not None
        )

    def hypervolume_of(self, points: Iterable[Sequence[float]]) -> float:
        """:meth:`hypervolume` of (score, costs) of any networks."""
        ranges = math.prod(b - a for a, b in zip(self.least, self.most, strict=True))
        minimised = [(-score, *costs) for score, *costs in points]
        return hypervolume(minimised, (0.0, *self.most)) / ranges

    def recommended(
        self, front: Sequence[CandidateRecord]
    ) -> list[tuple[float | None, CandidateRecord | None]]:
        """(budget, recommended member of a front) for each budget, in their order.

        Within a budget it is the fittest, of equally fit ones the cheapest by the first cost; None
        if no member is within it. Without budgets it is the knee, with None for the budget: with
        fitness and costs scaled to 0 to 1 over the front, the member with the largest difference
        between fitness and mean cost, of equal ones the cheapest. Of two objectives that is the
        one farthest above the line between both ends of the front.
        """
        if not self.budgets:
            return [(None, self._knee(front))]
        found: list[tuple[float | None, CandidateRecord | None]] = []
        for budget in self.budgets:
            within = [record for record in front if self.costs_of(record)[0] <= budget]
            found.append((budget, min(within, key=lambda r: r.rank_key[0], default=None)))
        return found

    def best(self, front: Sequence[CandidateRecord]) -> CandidateRecord:
        """The one that is recommended for the first budget that has one; the cheapest by the first
        cost if none has.
        """
        return next((r for _, r in self.recommended(front) if r is not None), front[0])

    def _knee(self, front: Sequence[CandidateRecord]) -> CandidateRecord:
        points = [(-record.rank_key[0], *self.costs_of(record)) for record in front]
        scaled = [_scaled(values) for values in zip(*points, strict=True)]
        heights = [
            fitness - sum(costs) / len(costs) for fitness, *costs in zip(*scaled, strict=True)
        ]
        return front[heights.index(max(heights))]


class FrontSoFar:
    """The front of the candidates told so far."""

    def __init__(self, objectives: Objectives) -> None:
        self._objectives = objectives
        self.members: list[CandidateRecord] = []

    def add(self, records: Iterable[CandidateRecord]) -> None:
        self.members = self._objectives.front([*self.members, *records])

    @property
    def hypervolume(self) -> float:
        return self._objectives.hypervolume(self.members)


def hypervolume_curve(
    records: Iterable[CandidateRecord], objectives: Objectives
) -> dict[int, float]:
    """Number of evaluations at the end of each generation -> hypervolume of all so far."""
    generations: dict[int, list[CandidateRecord]] = {}
    for record in records:
        generations.setdefault(record.generation, []).append(record)
    front, count, curve = FrontSoFar(objectives), 0, {}
    for generation in sorted(generations):
        count += len(generations[generation])
        front.add(generations[generation])
        curve[count] = front.hypervolume
    return curve


def _scaled(values: Sequence[float]) -> list[float]:
    """To 0 to 1; equal values are 0."""
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]
