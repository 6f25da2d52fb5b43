"""Milliseconds of a whole detector for one image, on the machine that asks."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from detnas_d2.engine.supernet_check.scores import untouched
from detnas_d2.utils.timing import in_turns, milliseconds

_WARM_UP = 3


@dataclass(frozen=True)
class Latency:
    """Medians over the runs, in milliseconds.

    Attributes:
        detector: from the image to the detections.
        body: of the backbone without its neck.
        low, high: quartiles of ``detector``.
    """

    detector: float
    body: float
    low: float
    high: float


@torch.no_grad()
def detector_latency(model: Any, image: torch.Tensor, *, repeats: int = 20) -> Latency:
    """Latency of a Detectron2 model with one image (3, H, W), as its loader gives it.

    Detector and body run in turns, after a warm-up.
    """
    sample = {"image": image, "height": image.shape[1], "width": image.shape[2]}
    body: nn.Module = getattr(model.backbone, "bottom_up", model.backbone)
    with untouched(model):
        model.eval()
        pixels = model.preprocess_image([sample]).tensor
        runs: list[Callable[[], object]] = [partial(model, [sample]), partial(body, pixels)]
        measure = partial(milliseconds, device=str(pixels.device))
        whole, own = (row[_WARM_UP:] for row in in_turns(measure, runs, repeats + _WARM_UP))
    low, _, high = statistics.quantiles(whole, n=4)
    return Latency(statistics.median(whole), statistics.median(own), low, high)
