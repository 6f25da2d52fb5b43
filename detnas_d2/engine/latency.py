"""Milliseconds of whole detectors for one image, on the machine that asks.

A run goes from the pixels of a decoded image to detections in its coordinates, in three pieces:
before the network (resizing, layout), the network (normalisation, padding, backbone, neck, head,
non-maximum suppression; all of it is in an exported file) and after it (boxes in the image's
coordinates).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.modeling import GeneralizedRCNN, detector_postprocess
from torch import Tensor, nn

from detnas_d2.data.loaders.user_images import read_pixels
from detnas_d2.engine.export import Exported
from detnas_d2.engine.runtimes import Runner
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.timing import in_turns, milliseconds, wait_for

WARM_UP = 3
"""Runs before those that count."""
_PAUSE = 0.002  # seconds; idle threads of the runtime before stop waiting for work in less


@dataclass(frozen=True)
class Latency:
    """Medians over the runs, in milliseconds.

    Attributes:
        milliseconds: of the whole run; ``low`` and ``high``: its quartiles.
        before, network, after: of its pieces; medians do not add up exactly.
    """

    milliseconds: float
    low: float
    high: float
    before: float
    network: float
    after: float


@dataclass(frozen=True)
class Picture:
    """A decoded image and what makes the network's input of it.

    Args:
        pixels: uint8 (H, W, 3), in the channel order of the config.
        augmentations: those of testing.
    """

    pixels: np.ndarray
    augmentations: T.AugmentationList

    @classmethod
    def of_config(
        cls, cfg: CfgNode, file: str = "", size: tuple[int, int] | None = None
    ) -> Picture:
        """The image in a file, noise of a (height, width), or the first test image.

        For the last the datasets must be registered.
        """
        if size is not None:
            pixels = np.random.RandomState(0).randint(0, 256, (*size, 3)).astype(np.uint8)
        else:
            if not file:
                name = cfg.DATASETS.TEST[0]
                file = get_detection_dataset_dicts(name, filter_empty=False)[0]["file_name"]
            pixels = read_pixels(file, cfg.INPUT.FORMAT)
        augmentations = detection_utils.build_augmentation(cfg, is_train=False)
        return cls(pixels, T.AugmentationList(augmentations))

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    def input(self) -> Tensor:
        """uint8 (3, h, w), as Detectron2's mapper makes it."""
        chosen = T.AugInput(self.pixels)
        self.augmentations(chosen)
        return torch.as_tensor(np.ascontiguousarray(chosen.image.transpose(2, 0, 1)))


@dataclass(frozen=True)
class DetectorRun:
    """A detector in a runtime, and the picture that it sees; ``device`` is the network's."""

    before: Callable[[], Any]
    network: Callable[[Any], Any]
    after: Callable[[Any], Any]
    device: str

    def __call__(self) -> Any:
        return self.after(self.network(self.before()))

    @torch.no_grad()
    def timed(self) -> tuple[float, float, float]:
        """Milliseconds of the three pieces of one run."""
        wait = partial(wait_for, self.device)
        wait()
        start = time.perf_counter()
        image = self.before()
        ready = time.perf_counter()
        found = self.network(image)
        wait()
        done = time.perf_counter()
        self.after(found)
        wait()
        end = time.perf_counter()
        return (ready - start) * 1e3, (done - ready) * 1e3, (end - done) * 1e3


def pytorch_run(model: Any, picture: Picture) -> DetectorRun:
    """The run of a Detectron2 model, in eval mode.

    Raises:
        InputError: it is no detector of boxes.
    """
    if not hasattr(model, "preprocess_image") or not hasattr(model, "backbone"):
        raise InputError(f"{type(model).__name__}: expected a detector; it finds no boxes")

    def network(image: Tensor) -> Any:
        inputs = [{"image": image}]
        if isinstance(model, GeneralizedRCNN):
            return model.inference(inputs, do_postprocess=False)[0]
        return model(inputs)[0]["instances"]

    def after(found: Any) -> Any:
        return detector_postprocess(found, *picture.size)

    return DetectorRun(picture.input, network, after, str(model.device))


def exported_run(exported: Exported, runner: Runner, picture: Picture) -> DetectorRun:
    """The run of a whole model's file by a runtime on the CPU."""

    def after(tensors: tuple[Tensor, ...]) -> Any:
        (result,) = exported.schema(tensors)
        return detector_postprocess(result["instances"], *picture.size)

    return DetectorRun(lambda: picture.input().float(), runner, after, "cpu")


@dataclass(frozen=True)
class PartsRun:
    """The backbone of a model without and with its neck, on what the network makes of an image."""

    body: nn.Module
    backbone: nn.Module
    pixels: Tensor

    @classmethod
    def of_model(cls, model: Any, picture: Picture) -> PartsRun:
        """Of a Detectron2 model in eval mode."""
        body = getattr(model.backbone, "bottom_up", model.backbone)
        pixels = model.preprocess_image([{"image": picture.input()}]).tensor
        return cls(body, model.backbone, pixels)

    @torch.no_grad()
    def timed(self) -> tuple[float, ...]:
        """Milliseconds of both."""
        runs = (partial(module, self.pixels) for module in (self.body, self.backbone))
        return tuple(milliseconds(run, str(self.pixels.device)) for run in runs)


def timed_in_turns(
    runs: Sequence[DetectorRun | PartsRun], repeats: int
) -> list[list[tuple[float, ...]]]:
    """``repeats`` measurements of each after a warm-up, all in turns."""

    def measure(run: DetectorRun | PartsRun) -> tuple[float, ...]:
        time.sleep(_PAUSE)
        return run.timed()

    return [row[WARM_UP:] for row in in_turns(measure, runs, repeats + WARM_UP)]


def latency_of(rows: Sequence[tuple[float, ...]]) -> Latency:
    """Of the measurements of a :class:`DetectorRun`."""
    low, middle, high = statistics.quantiles(map(sum, rows), n=4, method="inclusive")
    pieces = [statistics.median(column) for column in zip(*rows, strict=True)]
    return Latency(middle, low, high, *pieces)


def latencies(runs: Sequence[DetectorRun], repeats: int) -> list[Latency]:
    """Latencies of detectors, measured in turns after a warm-up."""
    return [latency_of(rows) for rows in timed_in_turns(runs, repeats)]


@dataclass(frozen=True)
class Parts:
    """Milliseconds of a network's parts in PyTorch; ``head``: with the rest of the network."""

    backbone: float
    neck: float
    head: float


def parts_of(rows: Sequence[tuple[float, ...]], latency: Latency) -> Parts:
    """Where the time of a network goes, by the measurements of a :class:`PartsRun`."""
    body, backbone = (statistics.median(column) for column in zip(*rows, strict=True))
    neck = max(backbone - body, 0.0)
    return Parts(body, neck, max(latency.network - body - neck, 0.0))
