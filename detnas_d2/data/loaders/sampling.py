"""Composition of training batches: a pure function of the seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler


def permutation(length: int, seed: int, epoch: int = 0) -> np.ndarray:
    """int64[length], a permutation from (seed, epoch); the same for every NumPy version."""
    sequence = np.random.SeedSequence([seed, epoch])
    return np.random.RandomState(np.random.MT19937(sequence)).permutation(length)


def aspect_flags(dataset_dicts: Sequence[dict[str, Any]]) -> np.ndarray:
    """uint8[n]: 1 for images wider than high. All 0 where the dicts hold no sizes."""
    return np.array([d.get("width", 0) > d.get("height", 0) for d in dataset_dicts], dtype=np.uint8)


class TrainingBatchSampler(Sampler):
    """Endless batches of (position, index), shuffled again in every epoch.

    Images are drawn epoch by epoch into two buckets by aspect ratio; a bucket that holds a global
    batch is emitted. Batch i is the same whether the iteration began at 0 or at i, and each rank
    gets its part of it. ``position`` counts the samples of all ranks, i * batch_size_total + slot,
    and names the sample for seeding.

    Args:
        flags: an aspect flag (0 or 1) per image, see :func:`aspect_flags`.
        batch_size_total: images per batch over all ranks.
        seed: of the permutations.
        rank, world_size: this process takes the rank-th part of each batch.
        start_batch: first batch to yield.
        aspect_grouping: False ignores the flags.

    Attributes:
        start_batch: where the next iteration begins.
    """

    def __init__(
        self,
        flags: Sequence[int] | np.ndarray,
        batch_size_total: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
        aspect_grouping: bool = True,
    ) -> None:
        if len(flags) == 0:
            raise ValueError("TrainingBatchSampler: the dataset is empty")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size), got {rank} of {world_size}")
        if batch_size_total < 1 or batch_size_total % world_size:
            raise ValueError(
                f"batch_size_total ({batch_size_total}) must be a positive multiple of the "
                f"number of processes ({world_size})"
            )
        if start_batch < 0:
            raise ValueError(f"start_batch must not be negative, got {start_batch}")
        flags = np.asarray(flags, dtype=np.uint8)
        self._flags = flags if aspect_grouping else np.zeros_like(flags)
        self._batch_size_total = batch_size_total
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self.start_batch = start_batch
        self._totals = np.bincount(self._flags, minlength=2)  # images per bucket and epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size = self._batch_size_total // self._world_size
        first = self._rank * size
        for batch_id, batch in self._batches():
            start = batch_id * self._batch_size_total + first
            yield [(start + i, index) for i, index in enumerate(batch[first : first + size])]

    def _batches(self) -> Iterator[tuple[int, list[int]]]:
        """(batch id, indices) of the global batches from ``start_batch`` on."""
        epoch = self._start_epoch()
        batch_id = self._finished(epoch)
        buckets = [self._carried(flag, epoch) for flag in (0, 1)]
        while True:
            order = self._order(epoch)
            for index, flag in zip(order.tolist(), self._flags[order].tolist(), strict=True):
                bucket = buckets[flag]
                bucket.append(index)
                if len(bucket) == self._batch_size_total:
                    if batch_id >= self.start_batch:
                        yield batch_id, bucket
                    buckets[flag] = []
                    batch_id += 1
            epoch += 1

    def _order(self, epoch: int) -> np.ndarray:
        return permutation(len(self._flags), self._seed, epoch)

    def _finished(self, epoch: int) -> int:
        """Batches emitted before an epoch: each epoch adds the same numbers to the buckets."""
        return sum(int(epoch * total) // self._batch_size_total for total in self._totals)

    def _start_epoch(self) -> int:
        """The epoch in which ``start_batch`` is completed."""
        low, high = 0, 1
        while self._finished(high) <= self.start_batch:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            if self._finished(middle) <= self.start_batch:
                low = middle
            else:
                high = middle
        return low

    def _carried(self, flag: int, epoch: int) -> list[int]:
        """Contents of a bucket when an epoch begins: the last images of earlier epochs."""
        missing = int(epoch * self._totals[flag]) % self._batch_size_total
        parts: list[list[int]] = []
        while missing:
            epoch -= 1
            order = self._order(epoch)
            part = order[self._flags[order] == flag][-missing:].tolist()
            parts.insert(0, part)
            missing -= len(part)
        return [index for part in parts for index in part]
