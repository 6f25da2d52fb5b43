"""Training batches at the resolutions that an update's paths are drawn with.

Each batch of the training is loaded at every resolution of its update, once: images, their order
and all random numbers of augmentation are the same at each, so a batch at a resolution is that
batch of a training whose config has this resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from torch.utils.data import Dataset, Sampler

from detnas_d2.data.loaders.samples import Mapper
from detnas_d2.data.loaders.sampling import TrainingBatchSampler
from detnas_d2.data.loaders.seeded_map import SeededMapDataset

Sample = dict[str, Any]


@dataclass(frozen=True)
class Resizing:
    """Which batches are loaded at which resolutions.

    Attributes:
        configs: resolution -> config whose images have it.
        resolutions: number of a batch -> its resolutions; the same on all ranks.
    """

    configs: Mapping[int, CfgNode]
    resolutions: Callable[[int], Sequence[int]]


class ResizedBatchSampler(Sampler):
    """Batches of (resolution, (position, index)): those of ``batches``, at each resolution."""

    def __init__(self, batches: TrainingBatchSampler, resizing: Resizing) -> None:
        self._batches, self._resolutions = batches, resizing.resolutions

    def __iter__(self) -> Iterator[list[tuple[int, tuple[int, int]]]]:
        for number, batch in enumerate(self._batches, start=self._batches.start_batch):
            sizes = dict.fromkeys(self._resolutions(number))
            yield [(resolution, key) for resolution in sizes for key in batch]


class ResizedDataset(Dataset):
    """Samples of a dataset by the mapper of a resolution; keys are (resolution, key)."""

    def __init__(self, dataset: SeededMapDataset, mappers: Mapping[int, Mapper]) -> None:
        self._datasets = {size: dataset.with_mapper(mapper) for size, mapper in mappers.items()}

    def __getitem__(self, key: tuple[int, tuple[int, int]]) -> tuple[int, Sample]:
        resolution, own = key
        return resolution, self._datasets[resolution][own]


def by_resolution(samples: list[tuple[int, Sample]]) -> dict[int, list[Sample]]:
    """Collates a batch of :class:`ResizedDataset`: resolution -> the batch at it."""
    batches: dict[int, list[Sample]] = {}
    for resolution, sample in samples:
        batches.setdefault(resolution, []).append(sample)
    return batches
