"""What decides a recipe: the data, and the machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import BoxMode

from detnas_d2.utils.errors import InputError


@dataclass(frozen=True)
class DataFacts:
    """Images and boxes of a dataset; sizes in pixels of the images as they are.

    Attributes:
        train, test: images.
        val: images of a dataset of its own that scores candidates; 0: some of ``train`` do.
        classes: their number.
        short, long: median of the shorter and of the longer side of training images.
        elongation: long over short side that 95 % of the images keep.
        smallest, large: square roots of box areas: their 5 % and 95 % quantiles.
        small: size that nine of ten boxes have at least, and half of the boxes of every class.
        aspects: 10 % and 90 % quantiles of height over width of boxes.
        crowd: boxes that 95 % of the images keep.
    """

    train: int
    test: int
    val: int
    classes: int
    short: float
    long: float
    elongation: float
    smallest: float
    small: float
    large: float
    aspects: tuple[float, float]
    crowd: int


@dataclass(frozen=True)
class Machine:
    """``processes`` that a run uses, on GPUs of ``memory`` GiB each, or on CPUs (``gpu`` False)."""

    gpu: bool
    processes: int
    threads: int
    memory: float = 0.0

    @classmethod
    def here(cls, processes: int) -> Machine:
        """This machine with so many processes."""
        if not torch.cuda.is_available():
            return cls(False, processes, torch.get_num_threads())
        memory = min(
            torch.cuda.get_device_properties(number).total_memory
            for number in range(torch.cuda.device_count())
        )
        return cls(True, processes, os.cpu_count() or 1, memory / 2**30)

    def __str__(self) -> str:
        if self.gpu:
            return f"{self.processes} GPU{'s' * (self.processes > 1)} of {self.memory:.0f} GiB"
        processes = f"{self.processes} processes with " if self.processes > 1 else ""
        return f"a CPU, {processes}{self.threads} thread{'s' * (self.threads > 1)}"


def facts_of(train: Sequence[Mapping[str, Any]], *, test: int, val: int, classes: int) -> DataFacts:
    """Facts about Detectron2's dataset dicts of boxes.

    Args:
        train: the training images; of the others the numbers.

    Raises:
        InputError: the training images have no box.
    """
    sizes = np.array([sorted((image["height"], image["width"])) for image in train], dtype=float)
    boxes, labels, counts = [], [], []
    for image in train:
        kept = [a for a in image.get("annotations", ()) if not a.get("iscrowd", 0)]
        boxes += [
            BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYWH_ABS)[2:4] for a in kept
        ]
        labels += [a["category_id"] for a in kept]
        counts.append(len(kept))
    if not boxes:
        raise InputError("the training images have no box to learn from")
    width, height = np.array(boxes, dtype=float).clip(min=1).T
    sides = np.sqrt(width * height)
    smallest, small, large = (float(np.quantile(sides, q)) for q in (0.05, 0.1, 0.95))
    for label in np.unique(labels):
        small = min(small, float(np.median(sides[np.array(labels) == label])))
    low, high = (float(np.quantile(height / width, q)) for q in (0.1, 0.9))
    return DataFacts(
        train=len(train),
        test=test,
        val=val,
        classes=classes,
        short=float(np.median(sizes[:, 0])),
        long=float(np.median(sizes[:, 1])),
        elongation=float(np.quantile(sizes[:, 1] / sizes[:, 0], 0.95)),
        smallest=smallest,
        small=small,
        large=large,
        aspects=(low, high),
        crowd=int(np.ceil(np.quantile(counts, 0.95))),
    )
