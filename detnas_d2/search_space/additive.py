"""Quantities of paths that are sums over layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class AdditiveTable(Generic[Number]):
    """The numbers of one quantity: ``total(choices) = base + sum of entries[layer][choice]``.

    Args:
        base: what every path shares (the stem).
        entries: ``entries[layer][op]``.
    """

    base: Number
    entries: tuple[tuple[Number, ...], ...]

    def total(self, choices: Iterable[int]) -> Number:
        """The quantity of the path that chooses ``choices[i]`` in layer i."""
        return self.base + sum(row[c] for row, c in zip(self.entries, choices, strict=True))

    def cheapest(self) -> Number:
        """Exact minimum over all paths."""
        return self.base + sum(min(row) for row in self.entries)

    def most_expensive(self) -> Number:
        """Exact maximum over all paths."""
        return self.base + sum(max(row) for row in self.entries)

    def cheapest_choices(self) -> tuple[int, ...]:
        """Choices of a path that has the minimum: the first of equals in every layer."""
        return tuple(row.index(min(row)) for row in self.entries)

    def most_expensive_choices(self) -> tuple[int, ...]:
        """Choices of a path that has the maximum: the first of equals in every layer."""
        return tuple(row.index(max(row)) for row in self.entries)
