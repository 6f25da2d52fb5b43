"""Detections of a test set matched with its truth, by pycocotools, and what follows from them:
average precision of any weighting of the images, curves, an interval.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detnas_d2.utils.errors import InputError

MAX_DETECTIONS = 100
"""Of an image, those of highest score: COCO's AP."""
_EPS = np.spacing(1)
_DRAWS = 300  # sets of images


@dataclass(frozen=True)
class ClassMatches:
    """Detections of one class, highest score first, over all images.

    Attributes:
        positives: int[I], objects of each image.
        image: int[D], position of the detection's image.
        score: float[D].
        hit, ignored: bool[T, D]; whether it matches an object at each IoU, or counts for nothing.
    """

    name: str
    positives: np.ndarray
    image: np.ndarray
    score: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray

    def precision(self, weights: np.ndarray | None = None) -> np.ndarray:
        """float[B, T, R]: precision at each IoU and recall, as COCO interpolates it.

        Args:
            weights: [B, I], how often each image counts; once by default.

        Returns:
            NaN where no object counts.
        """
        weights = np.ones((1, len(self.positives))) if weights is None else weights
        recalls = recall_steps()
        found = np.zeros((len(weights), len(self.hit), len(recalls)))
        total = weights @ self.positives
        drawn = weights[:, self.image]
        for number, (hit, ignored) in enumerate(zip(self.hit, self.ignored, strict=True)):
            places = np.flatnonzero(hit & ~ignored)  # elsewhere precision only falls
            right = np.cumsum(drawn[:, places], axis=1)
            wrong = np.cumsum(drawn * (~hit & ~ignored), axis=1)[:, places]
            precision = right / (right + wrong + _EPS)
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            for row in np.flatnonzero(total):
                reached = np.searchsorted(right[row] / total[row], recalls)
                inside = reached < len(places)
                found[row, number, inside] = best[row, reached[inside]]
        found[total == 0] = np.nan
        return found


@dataclass(frozen=True)
class Box:
    """An object or a detection of an image; ``box`` is x, y, width, height in pixels.

    ``score`` is the detection's; of an object that of the detection that found it, at IoU 0.5, or
    None. ``hit`` tells of a detection whether it found an object.
    """

    name: str
    box: tuple[float, float, float, float]
    score: float | None
    hit: bool


@dataclass(frozen=True)
class Image:
    """A test image, its objects and detections, without crowd regions and what lies in them."""

    file: str
    width: int
    height: int
    objects: tuple[Box, ...]
    detections: tuple[Box, ...]


@dataclass(frozen=True)
class Matches:
    """Of all classes of a test set, and its images in the same order."""

    classes: tuple[ClassMatches, ...]
    images: tuple[Image, ...]

    def ap(self, weights: np.ndarray | None = None, ious: slice = slice(None)) -> np.ndarray:
        """float[B], COCO's AP in percent: mean over classes, IoUs and recalls.

        Args:
            ious: which of :func:`iou_steps`.
        """
        values = [c.precision(weights)[:, ious].mean(axis=(1, 2)) for c in self.classes]
        return 100 * _nanmean(np.array(values))

    @cached_property  # minutes for COCO, and a page is written again after every stage
    def interval(self) -> tuple[float, float] | None:
        """:meth:`interval_at` all IoUs."""
        return self.interval_at(slice(None))

    def interval_at(self, ious: slice) -> tuple[float, float] | None:
        """Percentiles of the AP over bootstrapped sets of images, 2.5 and 97.5; None for fewer than
        two images.

        Training and search are not repeated: the interval is about the choice of test images.

        Args:
            ious: see :meth:`ap`.
        """
        count = len(self.images)
        if count < 2:
            return None
        rng = np.random.default_rng(0)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=_DRAWS).astype(float)
        # In parts: all at once would be gigabytes for classes with many detections.
        values = np.concatenate(
            [self.ap(part, ious) for part in np.array_split(weights, _DRAWS // 20)]
        )
        values = values[np.isfinite(values)]
        if not len(values):
            return None
        low, high = np.percentile(values, [2.5, 97.5])
        return float(low), float(high)

    def threshold(self) -> float:
        """The score above which detections have the best F1, at IoU 0.5 over all classes."""
        scores = np.concatenate([c.score for c in self.classes] or [np.zeros(0)])
        hits = np.concatenate([c.hit[0] for c in self.classes] or [np.zeros(0, bool)])
        counts = ~np.concatenate([c.ignored[0] for c in self.classes] or [np.zeros(0, bool)])
        order = np.argsort(-scores, kind="stable")
        right = np.cumsum((hits & counts)[order])
        told = np.cumsum(counts[order])
        objects = sum(int(c.positives.sum()) for c in self.classes)
        if not len(order) or not right[-1]:
            return 0.5
        f1 = 2 * right / (told + objects)
        # Detections of one score stand or fall together.
        ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))
        return float(scores[order][ends[np.argmax(f1[ends])]])


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def recall_steps() -> np.ndarray:
    """The recalls at which COCO takes precision."""
    return np.linspace(0.0, 1.0, 101)


def iou_steps() -> np.ndarray:
    """The IoUs over which COCO's AP is the mean."""
    return np.linspace(0.5, 0.95, 10)


def read_matches(truth: str, predictions: str, root: str = "") -> Matches:
    """Matches of the boxes of two files of COCO's formats; read again where one has changed.

    Args:
        root: folder of the images.

    Raises:
        InputError: a file that cannot be read, or predictions of other images.
    """
    stamps = []
    for file in (truth, predictions):
        try:
            status = os.stat(file)
        except OSError as error:
            raise InputError(f"{file}: {error.strerror}") from error
        stamps += [status.st_mtime_ns, status.st_size]
    return _read(truth, predictions, root, *stamps)


@lru_cache(maxsize=4)
def _read(truth: str, predictions: str, root: str, *stamps: int) -> Matches:
    try:
        with open(predictions, encoding="utf-8") as file:
            boxes = json.load(file)
    except ValueError as error:
        raise InputError(f"{predictions}: no detections of {truth}: {error}") from error
    return match_boxes(truth, boxes, predictions, root)


def match_boxes(
    truth: str, boxes: list[dict[str, Any]], source: str = "predictions", root: str = ""
) -> Matches:
    """Matches of boxes with the truth of a file.

    Args:
        boxes: as COCO's results list them.
        source: names them in errors.
        root: folder of the images.

    Raises:
        InputError: a file that cannot be read, or predictions of other images.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            known = COCO(truth)
            found = known.loadRes(boxes) if boxes else COCO()
            evaluation = COCOeval(known, found, "bbox")
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            what = str(error) or type(error).__name__
            raise InputError(f"{source}: no detections of {truth}: {what}") from error
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
    return _gathered(known, found, evaluation, root)


def _gathered(known: COCO, found: COCO, evaluation: Any, root: str) -> Matches:
    ids = list(evaluation.params.imgIds)
    objects: list[list[Box]] = [[] for _ in ids]
    detections: list[list[Box]] = [[] for _ in ids]
    classes = []
    for number, category in enumerate(evaluation.params.catIds):
        cells = evaluation.evalImgs[number * len(ids) : (number + 1) * len(ids)]
        name = str(known.cats[category].get("name", category))
        classes.append(_class_matches(name, cells))
        for place, cell in enumerate(cells):
            if cell is not None:
                objects[place] += _objects(name, known, cell)
                detections[place] += _detections(name, found, cell)
    images = []
    for place, image in enumerate(ids):
        entry = known.imgs[image]
        images.append(
            Image(
                os.path.join(root, str(entry.get("file_name", ""))),
                int(entry.get("width", 0)),
                int(entry.get("height", 0)),
                tuple(objects[place]),
                tuple(sorted(detections[place], key=lambda box: -(box.score or 0.0))),
            )
        )
    return Matches(tuple(classes), tuple(images))


def _class_matches(name: str, cells: list[Any]) -> ClassMatches:
    positives = np.array(
        [0 if cell is None else int(np.sum(cell["gtIgnore"] == 0)) for cell in cells], dtype=float
    )
    told = [(place, cell) for place, cell in enumerate(cells) if cell is not None]
    image = np.concatenate(
        [np.full(len(cell["dtScores"]), place) for place, cell in told] or [np.zeros(0)]
    ).astype(int)
    score = np.concatenate(
        [np.asarray(cell["dtScores"], float) for _, cell in told] or [np.zeros(0)]
    )
    empty = np.zeros((len(iou_steps()), 0), bool)
    hit = np.concatenate([cell["dtMatches"] > 0 for _, cell in told] or [empty], axis=1)
    ignored = np.concatenate([cell["dtIgnore"] > 0 for _, cell in told] or [empty], axis=1)
    order = np.argsort(-score, kind="mergesort")  # ties as pycocotools breaks them
    return ClassMatches(
        name, positives, image[order], score[order], hit[:, order], ignored[:, order]
    )


def _objects(name: str, known: COCO, cell: Any) -> Iterator[Box]:
    scores = dict(zip(cell["dtIds"], cell["dtScores"], strict=True))
    for number, (truth, ignored) in enumerate(zip(cell["gtIds"], cell["gtIgnore"], strict=True)):
        if not ignored:
            score = scores.get(int(cell["gtMatches"][0][number]))
            yield Box(name, tuple(known.anns[truth]["bbox"]), score, hit=score is not None)


def _detections(name: str, found: COCO, cell: Any) -> Iterator[Box]:
    for number, detection in enumerate(cell["dtIds"]):
        if not cell["dtIgnore"][0][number]:
            hit = bool(cell["dtMatches"][0][number] > 0)
            box = tuple(found.anns[detection]["bbox"])
            yield Box(name, box, float(cell["dtScores"][number]), hit)
