"""Candidates of a search: paths, with the resolution of their images where that is searched too."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic

from detnas_d2.search_space.additive import LayerTable, Number
from detnas_d2.search_space.costs import CostTable
from detnas_d2.search_space.counting import Cost
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
class ConditionalTable(Generic[Number]):
    """A quantity that has a table by layer once one gene is given: a :class:`LayerTable` of genes.

    Args:
        tables: one for each value of that gene (a resolution, a number of channels), of the others,
            of which another gene may have to be given too.
        gene: its place among the genes.
    """

    tables: tuple[LayerTable[Number] | ConditionalTable[Number], ...]
    gene: int = -1

    def total(self, choices: Iterable[int]) -> Number:
        """The quantity of the candidate with these genes."""
        value, others = self.taken_out(choices)
        return self.tables[value].total(others)

    def cheapest(self) -> Number:
        """Exact minimum over all candidates."""
        return min(table.cheapest() for table in self.tables)

    def most_expensive(self) -> Number:
        """Exact maximum over all candidates."""
        return max(table.most_expensive() for table in self.tables)

    def cheapest_choices(self) -> Choices:
        """Genes of a candidate that has the minimum."""
        least = [table.cheapest() for table in self.tables]
        value = least.index(min(least))
        return self.put_in(value, self.tables[value].cheapest_choices())

    def most_expensive_choices(self) -> Choices:
        """Genes of a candidate that has the maximum."""
        most = [table.most_expensive() for table in self.tables]
        value = most.index(max(most))
        return self.put_in(value, self.tables[value].most_expensive_choices())

    def taken_out(self, choices: Iterable[int]) -> tuple[int, Choices]:
        """The value of the gene, and the other genes."""
        genes = list(choices)
        value = genes.pop(self.gene)
        return value, tuple(genes)

    def put_in(self, value: int, others: Choices) -> Choices:
        """Inverse of :meth:`taken_out`."""
        place: int = self.gene % (len(others) + 1)
        return (*others[:place], value, *others[place:])


@dataclass(frozen=True)
class ConditionalCosts:
    """Cost tables by the value of one gene, see :class:`ConditionalTable`, as one of genes."""

    tables: tuple[CostTable | ConditionalCosts, ...]
    gene: int = -1

    @cached_property
    def macs(self) -> ConditionalTable[int]:
        return ConditionalTable(tuple(table.macs for table in self.tables), self.gene)

    @cached_property
    def params(self) -> ConditionalTable[int]:
        return ConditionalTable(tuple(table.params for table in self.tables), self.gene)

    @property
    def input_size(self) -> tuple[int, int]:
        """Of the first table."""
        return self.tables[0].input_size

    def cost(self, choices: Iterable[int]) -> Cost:
        """Cost of the candidate with these genes."""
        value, others = self.macs.taken_out(choices)
        return self.tables[value].cost(others)


Costs = CostTable | ConditionalCosts
"""Multiply-adds and parameters of candidates."""
Table = LayerTable[int] | LayerTable[float] | ConditionalTable[int] | ConditionalTable[float]
"""A quantity of candidates."""
