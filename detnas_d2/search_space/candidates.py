"""Candidates of a search: paths, with the resolution of their images where that is searched too."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic

from detnas_d2.search_space.additive import AdditiveTable, Number
from detnas_d2.search_space.costs import CostTable
from detnas_d2.search_space.space import Choices, Path, PathError, PathSpace


@dataclass(frozen=True)
class Candidates:
    """The paths of a space, each with every resolution, as genes: a path's choices, and last the
    place of the resolution; without resolutions the choices alone.
    """

    space: PathSpace
    resolutions: tuple[int, ...] = ()

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of values of each gene."""
        own = (len(self.resolutions),) if self.resolutions else ()
        return (*self.space.cardinalities, *own)

    def path(self, genes: Sequence[int]) -> Path:
        """The path of genes."""
        if not self.resolutions:
            return self.space.path(genes)
        *choices, place = genes
        return self.space.path(choices).at(self.resolutions[place])

    def genes(self, path: Path) -> Choices:
        """The genes of a path.

        Raises:
            PathError: it has a resolution that is not searched, or none.
        """
        if not self.resolutions and path.resolution is None:
            return path.choices
        if path.resolution not in self.resolutions:
            raise PathError(
                f"the path {path} has the resolution {path.resolution}: expected one of "
                f"{list(self.resolutions)}"
            )
        return (*path.choices, self.resolutions.index(path.resolution))

    def random_path(self, rng: random.Random) -> Path:
        """A path drawn uniformly, with a resolution if they are searched."""
        path = self.space.random_path(rng)
        if not self.resolutions:
            return path
        return path.at(self.resolutions[rng.randrange(len(self.resolutions))])


@dataclass(frozen=True)
class ResizedTable(Generic[Number]):
    """A quantity of paths at each of several resolutions: an :class:`AdditiveTable` of genes.

    Args:
        tables: one for each resolution, in the order of :class:`Candidates`.
    """

    tables: tuple[AdditiveTable[Number], ...]

    def total(self, choices: Iterable[int]) -> Number:
        """The quantity of the candidate with these genes."""
        *path, place = choices
        return self.tables[place].total(path)

    def cheapest(self) -> Number:
        """Exact minimum over all candidates."""
        return min(table.cheapest() for table in self.tables)

    def most_expensive(self) -> Number:
        """Exact maximum over all candidates."""
        return max(table.most_expensive() for table in self.tables)


@dataclass(frozen=True)
class ResizedCosts:
    """Cost tables of several resolutions, in the order of :class:`Candidates`, as one of genes."""

    tables: tuple[CostTable, ...]

    @property
    def macs(self) -> ResizedTable[int]:
        return ResizedTable(tuple(table.macs for table in self.tables))

    @property
    def params(self) -> ResizedTable[int]:
        return ResizedTable(tuple(table.params for table in self.tables))


Table = AdditiveTable[int] | AdditiveTable[float] | ResizedTable[int] | ResizedTable[float]
"""A quantity of candidates."""
