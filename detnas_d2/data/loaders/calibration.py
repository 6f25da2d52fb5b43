"""Fixed batches of training images, for recalibrating batch normalisation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import build_augmentation
from detectron2.utils import comm
from torch.utils.data import DataLoader

from detnas_d2.data.loaders.classification import ClassificationMapper
from detnas_d2.data.loaders.samples import Mapper
from detnas_d2.data.loaders.sampling import permutation
from detnas_d2.data.loaders.seeded_map import SeededMapDataset
from detnas_d2.data.loaders.train import (
    is_classification,
    list_of_samples,
    load_training_dicts,
    own_generator,
)

logger = logging.getLogger(__name__)


class CalibrationBatches:
    """The same batches at every iteration; the ranks share them out.

    Iterating yields this rank's batches, list[dict], in the order of ``batch_ids``: batches r,
    r + W, ... of rank r of W.
    """

    def __init__(
        self,
        dataset: SeededMapDataset,
        batches: Sequence[Sequence[int]],
        num_workers: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.dataset = dataset
        self._batches = batches
        self._num_workers = num_workers
        self._rank = rank, world_size
        self.batch_ids = tuple(range(rank, len(batches), world_size))

    def with_dataset(self, dataset: SeededMapDataset) -> CalibrationBatches:
        """The same batches from another dataset of the same images."""
        return CalibrationBatches(dataset, self._batches, self._num_workers, *self._rank)

    @property
    def image_indices(self) -> tuple[tuple[int, ...], ...]:
        """Places in the filtered dataset of the images of every batch, of all ranks."""
        return tuple(tuple(batch) for batch in self._batches)

    def __len__(self) -> int:
        return len(self.batch_ids)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        keys = [[(index, index) for index in self._batches[b]] for b in self.batch_ids]
        if not keys:
            return iter(())
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=keys,
                num_workers=min(self._num_workers, len(keys)),
                collate_fn=list_of_samples,
                generator=own_generator(),
            )
        )


def build_calibration_batches(
    cfg: CfgNode, dataset_name: str, num_images: int, batch_size: int, seed: int
) -> CalibrationBatches:
    """Batches of ``num_images`` images chosen without replacement.

    Images are resized as in evaluation (INPUT.MIN_SIZE_TEST, INPUT.MAX_SIZE_TEST) and never
    augmented; detection dicts carry "instances", so that a detector runs in training mode. A
    dataset with fewer images is used whole, with a warning. The last batch may be smaller.
    """
    if num_images < 1 or batch_size < 1:
        raise ValueError(
            f"num_images and batch_size must be positive, got {num_images} and {batch_size}"
        )
    dataset_dicts = load_training_dicts(cfg, [dataset_name])
    if num_images > len(dataset_dicts):
        logger.warning(
            "Calibration asks for %d images of '%s'; all of its %d are used",
            num_images,
            dataset_name,
            len(dataset_dicts),
        )
    chosen = permutation(len(dataset_dicts), seed)[:num_images].tolist()
    batches = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
    mapper: Mapper
    if is_classification(dataset_name):
        mapper = ClassificationMapper(cfg, False)
    else:
        mapper = fixed_training_mapper(cfg)
    return CalibrationBatches(
        SeededMapDataset(dataset_dicts, mapper, seed),
        batches,
        cfg.DATALOADER.NUM_WORKERS,
        comm.get_rank(),
        comm.get_world_size(),
    )


def fixed_training_mapper(cfg: CfgNode) -> DatasetMapper:
    """A mapper with the targets of training and the resizing of evaluation."""
    arguments = DatasetMapper.from_config(cfg, False)
    arguments.update(is_train=True, augmentations=build_augmentation(cfg, False))
    return DatasetMapper(**arguments)
