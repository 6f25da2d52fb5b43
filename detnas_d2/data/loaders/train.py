"""The loader of training batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog, get_detection_dataset_dicts
from detectron2.utils import comm
from torch.utils.data import DataLoader

from detnas_d2.data.loaders.classification import ClassificationMapper, rows_of_one_tensor
from detnas_d2.data.loaders.resized import (
    ResizedBatchSampler,
    ResizedDataset,
    Resizing,
    by_resolution,
)
from detnas_d2.data.loaders.samples import Mapper
from detnas_d2.data.loaders.sampling import TrainingBatchSampler, aspect_flags
from detnas_d2.data.loaders.seeded_map import SeededMapDataset


def list_of_samples(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Collates a batch as Detectron2's models take it."""
    return samples


def is_classification(name: str) -> bool:
    """Whether a registered dataset holds labelled images instead of boxes."""
    return MetadataCatalog.get(name).get("evaluator_type") == "image_classification"


def build_train_loader(
    cfg: CfgNode,
    *,
    start_iter: int,
    dataset_names: Sequence[str] | None = None,
    resizing: Resizing | None = None,
) -> DataLoader:
    """Endless training batches, list[dict], SOLVER.IMS_PER_BATCH images over all ranks.

    Batch i, augmentation included, depends on SEED (negative counts as 0), the data and the
    settings alone: not on ``start_iter``, where the loader begins, nor on DATALOADER.NUM_WORKERS.

    Args:
        dataset_names: default DATASETS.TRAIN.
        resizing: batches at several resolutions: each is a dict then, resolution -> the batch of
            the config of that resolution.
    """
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ValueError(
            "DATALOADER.SAMPLER_TRAIN must be 'TrainingSampler' (the resumable order of this "
            f"project), got {cfg.DATALOADER.SAMPLER_TRAIN!r}"
        )
    images, processes = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if images < 1 or images % processes:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {images}: expected a positive multiple of the number of "
            f"processes, {processes}"
        )
    names = list(cfg.DATASETS.TRAIN if dataset_names is None else dataset_names)
    if not names:
        raise ValueError("DATASETS.TRAIN names no dataset")
    mapper, collate = mapper_and_collate(cfg, names[0], is_train=True)
    loader = resumable_loader(
        load_training_dicts(cfg, names),
        mapper,
        total_batch_size=images,
        seed=max(cfg.SEED, 0),
        start_iter=start_iter,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate=collate,
    )
    if resizing is None:
        return loader
    mappers = {
        size: mapper_and_collate(own, names[0], is_train=True)[0]
        for size, own in resizing.configs.items()
    }
    dataset, batches = loader.dataset, loader.batch_sampler
    assert isinstance(dataset, SeededMapDataset) and isinstance(batches, TrainingBatchSampler)
    return DataLoader(
        ResizedDataset(dataset, mappers),
        batch_sampler=ResizedBatchSampler(batches, resizing),
        num_workers=loader.num_workers,
        collate_fn=by_resolution,
        generator=own_generator(),
    )


def resumable_loader(
    dataset_dicts: Sequence[dict[str, Any]],
    mapper: Mapper,
    *,
    total_batch_size: int,
    seed: int = 0,
    start_iter: int = 0,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = list_of_samples,
) -> DataLoader:
    """Endless batches, list[dict], from batch ``start_iter`` on.

    Batch i, augmentation included, depends on the seed, the dicts, the mapper and the sizes alone.

    Args:
        dataset_dicts: Detectron2's, e.g. of ``get_detection_dataset_dicts``.
        mapper: e.g. a ``DatasetMapper``; its random numbers come from ``random``, ``numpy.random``
            and torch.
        total_batch_size: images over all ranks, a multiple of their number.
    """
    sampler = TrainingBatchSampler(
        aspect_flags(dataset_dicts),
        total_batch_size,
        seed,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        start_batch=start_iter,
        aspect_grouping=aspect_ratio_grouping,
    )
    return DataLoader(
        SeededMapDataset(dataset_dicts, mapper, seed),
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        generator=own_generator(),
    )


def mapper_and_collate(
    cfg: CfgNode, name: str, *, is_train: bool
) -> tuple[Mapper, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]]:
    """Mapper from the dicts of the dataset ``name`` to samples, and their collate function."""
    if is_classification(name):
        return ClassificationMapper(cfg, is_train), rows_of_one_tensor
    return DatasetMapper(cfg, is_train), list_of_samples


def own_generator() -> torch.Generator:
    """For a DataLoader, which otherwise draws a number from torch's global generator."""
    return torch.Generator().manual_seed(0)


def load_training_dicts(cfg: CfgNode, names: Sequence[str]) -> list[dict[str, Any]]:
    """Dataset dicts with the filters that the config asks of training."""
    kinds = {name: is_classification(name) for name in names}
    if len(set(kinds.values())) > 1:
        raise ValueError(f"Classification and detection datasets cannot be mixed: {list(names)}")
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    return get_detection_dataset_dicts(
        list(names),
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=keypoints if cfg.MODEL.KEYPOINT_ON else 0,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
    )
