"""Which path an iteration trains: a pure function of (seed, iteration)."""

from __future__ import annotations

import random

from detnas_d2.search_space import Path, SearchSpace


class UniformPathSampler:
    """Uniform sampling of single paths (DetNAS section 3.1, step 2).

    All ranks agree without communication, and a resumed run continues the same sequence.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space, self.seed = space, seed

    def __call__(self, iteration: int) -> Path:
        return self.space.random_path(random.Random(f"path/{self.seed}/{iteration}"))
