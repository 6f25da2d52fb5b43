"""Loaders of a search that decode and resize every image once.

The images of evaluation and calibration are resized alike and never augmented, so both read them
from one :class:`ImageCache`. What is loaded is the same, bit by bit.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import check_image_size
from detectron2.data.transforms import ResizeShortestEdge, TransformList
from torch.utils.data import DataLoader

from detnas_d2.data.loaders.calibration import CalibrationBatches
from detnas_d2.data.loaders.classification import ClassificationMapper
from detnas_d2.data.loaders.image_cache import (
    CachedImage,
    CacheError,
    ImageCache,
    open_or_build,
    remove,
)
from detnas_d2.data.loaders.samples import Mapper, NamingMapDataset, map_sample
from detnas_d2.data.loaders.train import own_generator
from detnas_d2.utils.compat import transform_annotations

logger = logging.getLogger(__name__)

CACHE_FILE = "images.cache"
_CACHES = re.compile(r"images(_\d+)?\.cache")

Sample = dict[str, Any]


def cached_loaders(
    loader: DataLoader,
    calibration: CalibrationBatches,
    *,
    folder: str,
    gib: float,
    file: str = CACHE_FILE,
) -> tuple[DataLoader, CalibrationBatches]:
    """The same loaders, reading from ``file`` in ``folder``, which is built if need be.

    Every rank calls this; one of those on a machine builds. Images beyond ``gib`` GiB are decoded
    each time they are asked for. The loaders come back as they are, with a warning, if the mapper
    is not one that this file knows or the cache cannot be written; and if ``gib`` is 0.

    Args:
        loader: of :func:`build_test_loader`.
        calibration: of :func:`build_calibration_batches`.

    Raises:
        ValueError: ``gib`` is negative.
    """
    if gib < 0:
        raise ValueError(f"SEARCH.IMAGE_CACHE_GIB must not be negative, got {gib}")
    if gib == 0:
        return loader, calibration
    data: Any = loader.dataset
    mapper, samples = data.mapper, data.samples
    chosen = [calibration.dataset.samples[i] for batch in calibration.image_indices for i in batch]
    sources = {s["file_name"]: s for s in (*samples, *chosen) if _has_file(s)}
    recipes = [_recipe(m) for m in (mapper, calibration.dataset.mapper)]
    if recipes[0] is None or recipes[0] != recipes[1]:
        logger.warning("No image cache: images are not only resized, or not all alike")
        return loader, calibration
    try:
        cache = open_or_build(
            os.path.join(folder, file),
            {"recipe": recipes[0], "files": _files_digest(sources)},
            _decoded(list(sources.values()), mapper, loader.num_workers),
            int(gib * 2**30),
        )
    except OSError as error:
        logger.warning("No image cache: %s", error)
        return loader, calibration
    logger.info("Image cache %s: %d of %d images", cache.path, len(cache), len(sources))
    cached: DataLoader[Any] = DataLoader(
        NamingMapDataset(samples, CachedMapper(mapper, cache)),
        batch_size=loader.batch_size,
        sampler=loader.sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        generator=own_generator(),
    )
    own = calibration.dataset
    return cached, calibration.with_dataset(own.with_mapper(CachedMapper(own.mapper, cache)))


def drop_cache(folder: str) -> None:
    """Removes the caches of :func:`cached_loaders`, if there are some. Any number of ranks may."""
    resized = filter(_CACHES.fullmatch, os.listdir(folder) if os.path.isdir(folder) else ())
    for name in {CACHE_FILE, *resized}:
        remove(os.path.join(folder, name))


class CachedMapper:
    """A mapper with the results of ``mapper``, with pixels from the cache where it has them."""

    def __init__(self, mapper: DatasetMapper | ClassificationMapper, cache: ImageCache) -> None:
        self._mapper = mapper
        self._cache = cache
        self._warned = False

    def __call__(self, sample: Sample) -> Sample:
        if not _has_file(sample) or sample["file_name"] not in self._cache:
            return self._mapper(sample)
        try:
            image = self._cache.get(sample["file_name"])
        except CacheError as error:
            if not self._warned:  # once: a cache that was cut off lacks many
                logger.warning(
                    "Image cache %s: %s; what cannot be read from it is decoded",
                    self._cache.path,
                    error,
                )
            self._warned = True
            return self._mapper(sample)
        pixels = torch.from_numpy(image.pixels.copy())
        if isinstance(self._mapper, ClassificationMapper):
            return {**sample, "image": pixels, "label": int(sample["label"])}
        return _detection_sample(self._mapper, sample, image.original, pixels)


def _detection_sample(
    mapper: DatasetMapper, sample: Sample, original: tuple[int, int], pixels: torch.Tensor
) -> Sample:
    """``mapper(sample)`` from the resized pixels; step by step as ``DatasetMapper.__call__``."""
    result = copy.deepcopy(sample)
    unseen = np.broadcast_to(np.uint8(0), (*original, 3))  # of the decoded image, only its shape
    check_image_size(result, unseen)
    result["image"] = pixels
    if not mapper.is_train:
        result.pop("annotations", None)
        return result
    if "annotations" in result:
        resize = mapper.augmentations.augs[0].get_transform(unseen)
        shape = tuple(pixels.shape[1:])
        transform_annotations(mapper, result, TransformList([resize]), shape)
    return result


def _has_file(sample: Sample) -> bool:
    """Whether the pixels come from a file alone."""
    return "file_name" in sample and not {"image", "sem_seg_file_name"} & sample.keys()


def _recipe(mapper: Any) -> dict[str, Any] | None:
    """Settings of mapper and libraries that decide the pixels; None: not only the file does."""
    versions = {"pillow": PIL.__version__, "torchvision": torchvision.__version__}
    if type(mapper) is ClassificationMapper and not mapper.is_train:
        steps = repr(mapper.transform)
    elif type(mapper) is DatasetMapper and mapper.proposal_topk is None:
        augmentations = mapper.augmentations.augs
        if [type(a) for a in augmentations] != [ResizeShortestEdge]:
            return None
        if len(set(augmentations[0].short_edge_length)) != 1:
            return None
        steps = repr(augmentations[0])
    else:
        return None
    return {"format": mapper.image_format, "steps": steps, **versions}


def _files_digest(names: Iterable[str]) -> str:
    """A hash of the files' names, sizes and times of change."""
    digest = hashlib.sha256()
    for name in names:
        status = os.stat(name)
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


class _Decoding(torch.utils.data.Dataset):
    """(name, uint8 tensor (channels, height, width), (height, width) before resizing)."""

    def __init__(self, samples: Sequence[Sample], mapper: Mapper) -> None:
        self._samples = samples
        self._mapper = mapper

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, place: int) -> tuple[str, torch.Tensor, tuple[int, int]]:
        sample = self._samples[place]
        mapped = map_sample(self._mapper, {k: v for k, v in sample.items() if k != "annotations"})
        assert mapped is not None  # only mappers of trainings refuse images
        original = mapped.get("height", 0), mapped.get("width", 0)
        return sample["file_name"], mapped["image"], original


def _decoded(
    samples: Sequence[Sample], mapper: Mapper, num_workers: int
) -> Iterator[tuple[str, CachedImage]]:
    loader = DataLoader(
        _Decoding(samples, mapper),
        batch_size=None,
        num_workers=num_workers,
        generator=own_generator(),
    )
    for name, pixels, original in loader:
        yield name, CachedImage(pixels.numpy(), original)
