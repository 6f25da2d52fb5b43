"""Random paths of a wanted cost, and samples of networks that are spread over the costs of a space.

Uniform draws are concentrated in the middle of the range of costs: of 4^20 paths next to none is
among the cheapest or the dearest tenth.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterator

import numpy as np

from detnas_d2.search_space import AdditiveTable, Choices
from detnas_d2.search_space.candidates import ConditionalTable
from detnas_d2.utils.errors import InputError

_CELLS = 1000
BINS = 10
"""Of equal width between the cheapest and the dearest path."""
BAND = 0.05
"""Half the width of a band of costs, as a share of its middle."""
ATTEMPTS = 1000
"""Draws before a bin counts as exhausted."""


class CostSampler:
    """Draws paths uniformly among those whose cost lies in an interval.

    The numbers of paths of every cost, rounded to a thousandth of the range, are counted layer by
    layer; a path is drawn from the last layer to the first, and drawn again if its exact cost lies
    outside.
    """

    def __init__(self, table: AdditiveTable[int] | AdditiveTable[float]) -> None:
        self.table = table
        low, high = table.cheapest(), table.most_expensive()
        self._low, self._width = low, (high - low or 1) / _CELLS
        lowest = [min(row) for row in table.entries]
        self._cells = [
            [round((entry - least) / self._width) for entry in row]
            for row, least in zip(table.entries, lowest, strict=True)
        ]
        self._slack = len(self._cells) // 2 + 1  # cells by which a sum of rounded costs may be off
        ways = np.zeros(sum(max(row) for row in self._cells) + 1)
        ways[0] = 1
        self._ways = [ways]
        for row in self._cells:
            ways = sum((_shifted(ways, cell) for cell in row), np.zeros_like(ways))
            self._ways.append(ways)

    def draw(self, low: float, high: float, rng: random.Random) -> Choices | None:
        """A path with a cost of ``low`` to ``high``; None if none was found in many draws."""
        first, sums = self.ways(low, high)
        if not len(sums) or not sums[-1]:
            return None
        for _ in range(ATTEMPTS):
            choices = self.path(first, sums, rng)
            if low <= self.table.total(choices) <= high:
                return choices
        return None

    def ways(self, low: float, high: float) -> tuple[int, np.ndarray]:
        """Where costs of ``low`` to ``high`` may be among the rounded ones: the first of them, and
        the running sums of the numbers of paths from there on.
        """
        first = max(0, int((low - self._low) / self._width) - self._slack)
        last = int((high - self._low) / self._width) + self._slack + 1
        return first, np.cumsum(self._ways[-1][first : max(last + 1, 0)])

    def path(self, first: int, sums: np.ndarray, rng: random.Random) -> Choices:
        """A path drawn uniformly among those that :meth:`ways` counts."""
        return self._path(first + _index(sums, rng), rng)

    def _path(self, cell: int, rng: random.Random) -> Choices:
        """A path whose rounded costs add up to ``cell``."""
        choices = []
        for row, ways in zip(reversed(self._cells), reversed(self._ways[:-1]), strict=True):
            weights = [ways[cell - own] if own <= cell else 0.0 for own in row]
            choice = _index(np.cumsum(weights), rng)
            choices.append(choice)
            cell -= row[choice]
        return tuple(reversed(choices))


class ConditionalSampler:
    """:class:`CostSampler` of costs that are additive once one gene is given, uniform likewise."""

    def __init__(self, table: ConditionalTable[int]) -> None:
        self.table = table
        self._samplers = []
        for own in table.tables:
            assert isinstance(own, AdditiveTable)  # where images differ too, costs_at tells them
            self._samplers.append(CostSampler(own))

    def draw(self, low: float, high: float, rng: random.Random) -> Choices | None:
        """See :meth:`CostSampler.draw`; the choices are genes."""
        ways = [sampler.ways(low, high) for sampler in self._samplers]
        numbers = np.cumsum([sums[-1] if len(sums) else 0.0 for _, sums in ways])
        if not numbers[-1]:
            return None
        for _ in range(ATTEMPTS):
            value = _index(numbers, rng)
            genes = self.table.put_in(value, self._samplers[value].path(*ways[value], rng))
            if low <= self.table.total(genes) <= high:
                return genes
        return None


Sampler = CostSampler | ConditionalSampler


def cost_sampler(
    table: AdditiveTable[int] | AdditiveTable[float] | ConditionalTable[int],
) -> Sampler:
    """The sampler of a table of costs."""
    return CostSampler(table) if isinstance(table, AdditiveTable) else ConditionalSampler(table)


def _shifted(ways: np.ndarray, cells: int) -> np.ndarray:
    moved = np.zeros_like(ways)
    moved[cells:] = ways[: len(ways) - cells]
    return moved


def _index(sums: np.ndarray, rng: random.Random) -> int:
    """An index drawn by weight; ``sums`` are the running sums of the weights."""
    return int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))


def over_costs(
    sampler: Sampler,
    feasible: Callable[[Choices], bool],
    *,
    count: int,
    low: float,
    high: float,
    seed: int,
) -> list[Choices]:
    """``count`` distinct feasible paths spread over the costs from ``low`` to ``high``.

    The range has :data:`BINS` bins of equal width. Every ten draws take each bin once, in a random
    order, and a uniformly random path in it; a bin that holds no further path is passed over. The
    first n paths are the same whatever ``count`` is.

    Raises:
        InputError: there are fewer.
    """
    rng = random.Random(f"truth/range/{seed}")
    edges = [low + (high - low) * i / BINS for i in range(BINS + 1)]
    open_bins, found = set(range(BINS)), dict[Choices, None]()
    while len(found) < count and open_bins:
        for number in rng.sample(range(BINS), BINS):
            if number not in open_bins or len(found) == count:
                continue
            path = _new(sampler, feasible, (edges[number], edges[number + 1]), found, rng)
            if path is None:
                open_bins.remove(number)
            else:
                found[path] = None
    return _enough(list(found), count, f"with a cost of {low:g} to {high:g}")


def in_band(
    sampler: Sampler,
    feasible: Callable[[Choices], bool],
    *,
    count: int,
    middle: float,
    seed: int,
) -> list[Choices]:
    """``count`` distinct feasible paths, each uniform among those that cost :data:`BAND` more or
    less than ``middle`` at most. The first n are the same whatever ``count`` is.

    Raises:
        InputError: there are fewer.
    """
    rng, found = random.Random(f"truth/band/{seed}/{middle:.0f}"), dict[Choices, None]()
    bounds = (1 - BAND) * middle, (1 + BAND) * middle
    while len(found) < count:
        path = _new(sampler, feasible, bounds, found, rng)
        if path is None:
            break
        found[path] = None
    return _enough(list(found), count, f"within {BAND:.0%} of a cost of {middle:g}")


def _new(
    sampler: Sampler,
    feasible: Callable[[Choices], bool],
    bounds: tuple[float, float],
    known: Container[Choices],
    rng: random.Random,
) -> Choices | None:
    return next(
        (path for path in _draws(sampler, bounds, rng) if path not in known and feasible(path)),
        None,
    )


def _draws(sampler: Sampler, bounds: tuple[float, float], rng: random.Random) -> Iterator[Choices]:
    for _ in range(ATTEMPTS):
        path = sampler.draw(*bounds, rng)
        if path is None:
            return
        yield path


def _enough(found: list[Choices], count: int, where: str) -> list[Choices]:
    if len(found) < count:
        raise InputError(
            f"{count} networks {where}: only {len(found)} were found that keep the limits; ask for "
            "fewer, or widen the limits or the space"
        )
    return found
