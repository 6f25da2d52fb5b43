"""Quantities of paths that are sums over layers, or the most of any layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class LayerTable(ABC, Generic[Number]):
    """The numbers of one quantity, by layer.

    Args:
        base: what every path shares (the stem).
        entries: ``entries[layer][op]``.
    """

    base: Number
    entries: tuple[tuple[Number, ...], ...]

    @abstractmethod
    def total(self, choices: Iterable[int]) -> Number:
        """The quantity of the path that chooses ``choices[i]`` in layer i."""

    def cheapest(self) -> Number:
        """Exact minimum over all paths."""
        return self.total(self.cheapest_choices())

    def most_expensive(self) -> Number:
        """Exact maximum over all paths."""
        return self.total(self.most_expensive_choices())

    def cheapest_choices(self) -> tuple[int, ...]:
        """Choices of a path that has the minimum: the first of equals in every layer."""
        return tuple(row.index(min(row)) for row in self.entries)

    def most_expensive_choices(self) -> tuple[int, ...]:
        """Choices of a path that has the maximum: the first of equals in every layer."""
        return tuple(row.index(max(row)) for row in self.entries)


@dataclass(frozen=True)
class AdditiveTable(LayerTable[Number]):
    """``total(choices) = base + sum of entries[layer][choice]``."""

    def total(self, choices: Iterable[int]) -> Number:
        return self.base + sum(row[c] for row, c in zip(self.entries, choices, strict=True))


@dataclass(frozen=True)
class PeakTable(LayerTable[Number]):
    """``total(choices) = the largest of base and entries[layer][choice]``."""

    def total(self, choices: Iterable[int]) -> Number:
        return max(self.base, *(row[c] for row, c in zip(self.entries, choices, strict=True)))
