"""Children of paths: what searchers change in those that did well."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from detnas_d2.search.searcher import draw
from detnas_d2.search_space import Choices


class Kinds(Protocol):
    """How many children of each kind a generation has."""

    @property
    def population(self) -> int: ...
    @property
    def mutation(self) -> int: ...
    @property
    def crossover(self) -> int: ...
    @property
    def random(self) -> int: ...
    @property
    def mutation_prob(self) -> float: ...


def check_children(kinds: Kinds) -> None:
    """Raises ValueError if there are more children than places, or some that cannot be: their
    places would be filled at random, without a word.
    """
    for name in ("mutation", "crossover", "random"):
        if getattr(kinds, name) < 0:
            raise ValueError(f"{name} must not be negative, got {getattr(kinds, name)}")
    children = kinds.mutation + kinds.crossover + kinds.random
    if children > kinds.population:
        raise ValueError(
            f"mutation {kinds.mutation} + crossover {kinds.crossover} + random {kinds.random} "
            f"= {children} exceeds the population of {kinds.population}"
        )
    if not 0.0 <= kinds.mutation_prob <= 1.0:
        raise ValueError(f"mutation_prob must be in [0, 1], got {kinds.mutation_prob}")
    if kinds.mutation and kinds.mutation_prob == 0.0:
        raise ValueError(
            f"mutation {kinds.mutation} with mutation_prob {kinds.mutation_prob} changes "
            "nothing: expected a positive probability, or mutation 0"
        )


def redraw(
    parent: Choices, cardinalities: Sequence[int], probability: float, rng: random.Random
) -> Choices:
    """The parent with each gene drawn again, from all operations, with the given probability.

    Drawing an operation again may give the same one: of four, a quarter of the draws.
    """
    return tuple(
        draw(rng, n) if rng.random() < probability else gene
        for gene, n in zip(parent, cardinalities, strict=True)
    )


def change_one(parent: Choices, cardinalities: Sequence[int], rng: random.Random) -> Choices:
    """The parent with another operation in one layer, both drawn uniformly.

    Layers without a second operation are never drawn; if there is no other, the parent itself.
    """
    layers = [layer for layer, n in enumerate(cardinalities) if n > 1]
    if not layers:
        return parent
    layer = layers[draw(rng, len(layers))]
    other = draw(rng, cardinalities[layer] - 1)
    gene = other + (other >= parent[layer])  # steps over the operation that is there
    return (*parent[:layer], gene, *parent[layer + 1 :])


def cross(one: Choices, other: Choices, rng: random.Random) -> Choices:
    """Uniform crossover: every gene from either parent with probability 1/2."""
    return tuple(a if rng.random() < 0.5 else b for a, b in zip(one, other, strict=True))
