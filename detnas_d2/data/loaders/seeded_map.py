"""Maps samples with random numbers that depend on the sample alone."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from torch.utils.data import Dataset, get_worker_info

from detnas_d2.data.loaders.samples import Mapper, map_sample

logger = logging.getLogger(__name__)

_MAX_FALLBACKS = 100


@contextlib.contextmanager
def seeded(seed: int, position: int) -> Iterator[None]:
    """Seeds ``random``, ``numpy.random`` and torch's CPU generator from (seed, position).

    In the main process their states are put back afterwards; a loader's worker, which does
    nothing else, saves itself the time.
    """
    in_worker = get_worker_info() is not None
    if not in_worker:
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    value = int.from_bytes(hashlib.sha256(f"{seed}:{position}".encode()).digest()[:8], "big")
    random.seed(value)
    np.random.seed(value % 2**32)
    # Not torch.manual_seed: it would also reset the generators of the GPUs.
    torch.default_generator.manual_seed(value % 2**63)
    try:
        yield
    finally:
        if not in_worker:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])


class SeededMapDataset(Dataset):
    """Applies a mapper to dataset dicts; keys are (position, index).

    Augmentation is a pure function of (seed, position, dict), whatever process does it. Where the
    mapper returns None, the following images are tried in turn.
    """

    def __init__(self, dataset_dicts: Sequence[dict[str, Any]], mapper: Mapper, seed: int) -> None:
        # Serialised: workers then share the memory of the dicts.
        self.samples = DatasetFromList(list(dataset_dicts), copy=False, serialize=True)
        self.mapper = mapper
        self._seed = seed

    def with_mapper(self, mapper: Mapper) -> SeededMapDataset:
        """The same samples with another mapper."""
        other = copy.copy(self)
        other.mapper = mapper
        return other

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        position, index = key
        attempts = min(len(self), _MAX_FALLBACKS)
        for offset in range(attempts):
            candidate = (index + offset) % len(self)
            with seeded(self._seed, position):
                mapped = map_sample(self.mapper, self.samples[candidate])
            if mapped is not None:
                return mapped
            logger.warning("The mapper refused image %d, taking the next one", candidate)
        raise RuntimeError(f"The mapper refused {attempts} images in a row, from {index} on")
