"""Random search, the baseline DetNAS compares with, behind the interface of the evolution."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from detnas_d2.search.searcher import Draft, Feasible, GenerationSearcher


class RandomSearch(GenerationSearcher):
    """Distinct feasible paths drawn uniformly, in batches (so that progress has generations).

    Args:
        samples: paths in total; the last batch may be smaller.
        batch: paths per generation.
        The others are those of `GenerationSearcher`.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        *,
        samples: int,
        batch: int,
        seed: int,
        feasible: Feasible | None = None,
        constraint: str = "the constraint",
        attempts: int = 1000,
    ) -> None:
        if min(samples, batch) < 1:
            raise ValueError(f"samples and batch must be at least 1, got {samples} and {batch}")
        self.samples = samples
        self.batch = batch
        super().__init__(
            cardinalities,
            population=min(batch, samples),
            generations=-(-samples // batch),
            seed=seed,
            feasible=feasible,
            constraint=constraint,
            attempts=attempts,
        )

    @property
    def expected(self) -> int:
        return self.samples

    def describe(self) -> dict[str, Any]:
        settings = {"samples": self.samples, "batch": self.batch, "attempts": self._attempts}
        return {"strategy": "random", "seed": self.seed, "settings": settings}

    def _size(self, generation: int) -> int:
        return min(self.batch, self.samples - generation * self.batch)

    def _breed(self, draft: Draft, rng: random.Random) -> None:
        """Nobody has children: the base class draws the whole generation at random."""
