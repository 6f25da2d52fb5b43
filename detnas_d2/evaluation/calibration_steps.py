"""Calibration batches in forward passes: one by one, or several of one size together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from detnas_d2.evaluation.recalibration import (
    calibration_forward,
    calibration_part,
    images_of,
    seed_batch,
)
from detnas_d2.modeling import Supernet

Batch = list[dict[str, Any]]

_MOST_PIXELS = 2**23
"""Of batches that run together on a GPU by default: eight images of 800 x 1216. What a walk keeps
and a block computes with is about 250 bytes per pixel in float32, 2 GiB in all. More pixels keep a
GPU busy as they are."""


@dataclass(frozen=True)
class CalibrationStep:
    """One forward pass of every path, and the same for each of its batches.

    Attributes:
        numbers: of the batches.
        forward: runs all of them.
        alone: run one each.
    """

    numbers: list[int]
    forward: Callable[[], object]
    alone: Sequence[Callable[[], object]]

    def run(self, seed: int) -> None:
        seed_batch(seed, self.numbers[0])
        self.forward()

    def run_one_by_one(self, seed: int, begin: Callable[[], None]) -> None:
        """The same with less memory; ``begin`` is called before each batch."""
        for number, forward in zip(self.numbers, self.alone, strict=True):
            begin()
            seed_batch(seed, number)
            forward()


class CalibrationSteps:
    """The steps that batches make, in their order.

    Batches run together where images are all that is needed and a DetNAS supernet has all
    BatchNorms, which normalises each by itself. They follow one another, have one size, and are no
    more than fit ``most``.

    Args:
        batches: (number of the batch, list of Detectron2 dicts) on the model's device.
        most: batches of a step; 0: on a GPU, which has little to do for one small batch, as many as
            have 2**23 pixels together; on a CPU one, whose caches hold the maps of one batch better
            than those of several, and which has no launches to save.

    Attributes:
        most: may be set between steps.
    """

    def __init__(
        self, model: nn.Module, batches: Iterable[tuple[int, Batch]], most: int = 0
    ) -> None:
        self.most = most
        self._model, self._batches = model, batches

    def __iter__(self) -> Iterator[CalibrationStep]:
        part = calibration_part(self._model)
        if not isinstance(part, Supernet):
            forward, _ = calibration_forward(self._model)
            for number, batch in self._batches:
                run = partial(forward, batch)
                yield CalibrationStep([number], run, [run])
            return
        numbers: list[int] = []
        held: list[Tensor] = []
        for number, batch in self._batches:
            images = images_of(self._model, batch)
            if held and (images.shape != held[0].shape or len(held) >= self._limit(images)):
                yield _step(part, numbers, held)
                numbers, held = [], []
            numbers.append(number)
            held.append(images)
        if held:
            yield _step(part, numbers, held)

    def _limit(self, images: Tensor) -> int:
        if self.most or not images.is_cuda:
            return self.most or 1
        n, _, h, w = images.shape
        return max(_MOST_PIXELS // max(n * h * w, 1), 1)


def _step(part: nn.Module, numbers: list[int], images: list[Tensor]) -> CalibrationStep:
    whole = images[0] if len(images) == 1 else torch.cat(images)
    alone = [partial(part, one) for one in whole.chunk(len(images))]
    return CalibrationStep(numbers, partial(part, whole), alone)
