"""The test images that a detector does worst on, as small pictures with boxes."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.data.detection_utils import read_image
from PIL import Image as Pillow

from detnas_d2.evaluation.matches import Box, Image

COUNT = 10
_SIDE = 360  # pixels of the longer side; more are scaled down
_QUALITY = 72
_LISTED = 6


@dataclass(frozen=True)
class Judged:
    """An image and what its detections above a threshold are worth.

    ``found`` and ``missed`` are objects, ``right`` and ``wrong`` detections.
    """

    image: Image
    found: tuple[Box, ...]
    missed: tuple[Box, ...]
    right: tuple[Box, ...]
    wrong: tuple[Box, ...]

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); 1 where there is nothing to find and nothing found."""
        mistakes = len(self.missed) + len(self.wrong)
        total = 2 * len(self.found) + mistakes
        return 2 * len(self.found) / total if total else 1.0

    @property
    def sentence(self) -> str:
        """E.g. ``2 of 5 objects found; missed: cat, dog (2x); wrong: car``."""
        told = f"{len(self.found)} of {len(self.found) + len(self.missed)} objects found"
        for word, boxes in (("missed", self.missed), ("wrong", self.wrong)):
            told += f"; {word}: {_listed(boxes)}" if boxes else ""
        return told


@dataclass(frozen=True)
class Picture:
    """A picture of a page: ``data`` is the URI of a JPEG of ``width`` x ``height`` pixels.

    ``boxes`` are (kind, label, box) in its pixels; kinds are "found", "missed", "right", "wrong".
    """

    name: str
    sentence: str
    data: str
    width: int
    height: int
    boxes: tuple[tuple[str, str, tuple[float, float, float, float]], ...]

    @property
    def unit(self) -> float:
        """Pixels of the picture that are one when it is shown 300 wide."""
        return self.width / 300


def judge(image: Image, threshold: float) -> Judged:
    """What detections with a score of ``threshold`` or more do in an image, at IoU 0.5."""

    def counts(box: Box) -> bool:
        return box.score is not None and box.score >= threshold

    told = list(filter(counts, image.detections))
    return Judged(
        image,
        tuple(box for box in image.objects if counts(box)),
        tuple(box for box in image.objects if not counts(box)),
        tuple(box for box in told if box.hit),
        tuple(box for box in told if not box.hit),
    )


def worst_images(images: Sequence[Image], threshold: float, count: int = COUNT) -> list[Judged]:
    """Those with the lowest F1, of equal ones those with more mistakes; none without a mistake."""
    judged = [judge(image, threshold) for image in images]
    faulty = [found for found in judged if found.f1 < 1]
    return sorted(faulty, key=lambda found: (found.f1, -len(found.missed) - len(found.wrong)))[
        :count
    ]


def picture(judged: Judged) -> Picture:
    """The picture of an image.

    Raises:
        OSError: it cannot be read.
    """
    pixels = Pillow.fromarray(read_image(judged.image.file, format="RGB"))
    scale = min(1.0, _SIDE / max(pixels.size))
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in pixels.size)
        pixels = pixels.resize(size, Pillow.Resampling.LANCZOS)  # type: ignore[arg-type]
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    boxes = []
    for kind in ("found", "right", "missed", "wrong"):
        for box in getattr(judged, kind):
            score = f" {box.score:.2f}" if kind in ("right", "wrong") else ""
            label = "" if kind == "found" else f"{box.name}{score}"
            boxes.append((kind, label, tuple(side * scale for side in box.box)))
    return Picture(
        judged.image.file,
        judged.sentence,
        f"data:image/jpeg;base64,{data}",
        *pixels.size,
        tuple(boxes),
    )


def _listed(boxes: Sequence[Box]) -> str:
    """Names with their numbers, the most frequent ones first."""
    ordered = Counter(box.name for box in boxes).most_common()
    names = [name if count == 1 else f"{name} ({count}x)" for name, count in ordered[:_LISTED]]
    return ", ".join([*names, *(["..."] if len(ordered) > _LISTED else [])])
