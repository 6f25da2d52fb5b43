"""Remaining time of a whole pipeline, logged next to the remaining time of its stage.

An estimate: work counts images times pixels, three times where they are learned from. A stage that
has not begun takes as long per unit as the finished ones of its kind, or else as the one that runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.events import CommonMetricPrinter

from detnas_d2.search.build import SearcherSettings

_LEARNING = 3.0  # forward and backward


@dataclass
class Outlook:
    """Rest of a pipeline after the stage that runs.

    Attributes:
        work: of the stage that runs.
        later: (kind, work) of the stages after it that are not done.
        rates: seconds per unit of work of finished stages, by kind.
    """

    work: float
    later: Sequence[tuple[str, float]]
    rates: dict[str, float] = field(default_factory=dict)

    def seconds_left(self, eta: float, share: float) -> float:
        """Of all stages.

        Args:
            eta: seconds that the running stage still takes, for a ``share`` of its work.
        """
        own = eta / (self.work * share) if self.work * share > 0 else 0.0
        return eta + sum(work * self.rates.get(kind, own) for kind, work in self.later)

    def text(self, eta: float, share: float) -> str:
        """Text after the remaining time of the stage, "" for the last one."""
        if not self.later:
            return ""
        return f" (all stages about {timedelta(seconds=round(self.seconds_left(eta, share)))})"


_current: list[Outlook] = []


def set_outlook(outlook: Outlook | None) -> None:
    """Sets what the next stage that runs in this process tells."""
    _current[:] = [] if outlook is None else [outlook]


@contextmanager
def another_training(cfg: CfgNode) -> Iterator[None]:
    """Within the block the stage that runs trains what ``cfg`` says, in the place of its own."""
    before = list(_current)
    _current[:] = [replace(outlook, work=work_of(cfg, "train")) for outlook in before]
    try:
        yield
    finally:
        _current[:] = before


def outlook_text(eta: float, share: float) -> str:
    """:meth:`Outlook.text` of the pipeline that this process runs a stage of, "" without one."""
    return _current[0].text(eta, share) if _current else ""


def work_of(cfg: CfgNode, kind: str) -> float:
    """Megapixels that a stage processes, roughly; an evaluation, which is short, counts nothing."""
    if kind == "evaluate":
        return 0.0
    if kind == "search":
        settings = SearcherSettings.from_config(cfg).evolution
        images = settings.population * settings.generations
        images *= cfg.SEARCH.CALIBRATION.IMAGES + _validation_images(cfg)
        return images * _megapixels(cfg, [cfg.INPUT.MIN_SIZE_TEST])
    images = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
    return _LEARNING * images * _megapixels(cfg, cfg.INPUT.MIN_SIZE_TRAIN)


def _validation_images(cfg: CfgNode) -> int:
    """Those of the search where the config tells, else as many as calibrate."""
    split, name = cfg.DATASETS.SEARCH_SPLIT, cfg.SEARCH.VAL or cfg.DATASETS.TEST[0]
    told = name.endswith("@search_val") and not split.FRACTION
    return split.SIZE if told else cfg.SEARCH.CALIBRATION.IMAGES


def _megapixels(cfg: CfgNode, sides: Any) -> float:
    if cfg.MODEL.META_ARCHITECTURE == "ImageClassifier":
        sides = [cfg.INPUT.CLASSIFICATION.CROP_SIZE]
    return (sum(sides) / len(sides)) ** 2 / 1e6


class Printer(CommonMetricPrinter):
    """Detectron2's line of a training, with the time left of the pipeline."""

    def _get_eta(self, storage: Any) -> str | None:
        text = super()._get_eta(storage)
        if text and "eta_seconds" in storage.histories():
            share = (self._max_iter - storage.iter - 1) / self._max_iter
            text += outlook_text(storage.history("eta_seconds").latest(), share)
        return text
