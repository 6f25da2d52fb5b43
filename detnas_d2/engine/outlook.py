"""Remaining time of a whole pipeline, from the stage that runs and those that are finished.

Work counts images times pixels, three times where they are learned from; or seconds, where somebody
has estimated them. A stage that has not begun takes as long per unit as the finished ones of its
config, or else of its kind, or else as the one that runs if that is of its kind. Where none of
these has been measured it takes as long per unit as all others, which without an estimate is a
guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode

from detnas_d2.config.resolutions import resolutions_of
from detnas_d2.engine.architectures import (
    is_relaxed,
    is_sampled,
    searchable_backbone,
    searched_space,
)
from detnas_d2.engine.supernet_check.plan import equal_updates, is_checked
from detnas_d2.engine.trainers.path_sampling import build_path_sampler
from detnas_d2.search.build import SearcherSettings
from detnas_d2.utils.screen import duration

_LEARNING = 3.0  # forward and backward


@dataclass(frozen=True)
class Ahead:
    """A stage that is not done.

    Attributes:
        config: its file.
        work: megapixels, or seconds where they were estimated.
        beside: whether it may run next to others.
    """

    kind: str
    config: str
    work: float
    beside: bool = False


@dataclass
class Outlook:
    """What is left of a pipeline, on the process that tells of its stage.

    Attributes:
        running: the stage that runs, ``work`` that of the part that its progress is about.
        rest: work of that stage after this part.
        jobs: stages at a time, of those later ones that may run next to others.
        later: those after it that are not done.
        finished: (stage, seconds that it took) of those that are.
        estimated: work is in seconds.
    """

    running: Ahead
    later: Sequence[Ahead] = ()
    finished: Sequence[tuple[Ahead, float]] = ()
    estimated: bool = False
    rest: float = 0.0
    jobs: int = 1
    _own: float | None = field(default=None, repr=False)  # seconds per unit of what runs

    def measure(self, eta: float, share: float) -> None:
        """Notes the pace of what runs: it still takes ``eta`` seconds for a share of its work."""
        if self.running.work * share > 0 and eta > 0:
            self._own = eta / (self.running.work * share)

    def seconds_left(self, eta: float) -> tuple[float, bool]:
        """Of all stages, and whether each was measured or estimated, or its like.

        Args:
            eta: seconds that the running part still takes.
        """
        found = [self._rate(stage) for stage in self.later]
        alone, beside = 0.0, []
        for stage, (rate, _) in zip(self.later, found, strict=True):
            if stage.beside:
                beside.append((stage.work * rate, 0.0))
            else:
                alone += stage.work * rate
        later = alone + side_by_side(beside, self.jobs)
        return self.stage_left(eta) + later, all(sure for _, sure in found)

    def stage_left(self, eta: float) -> float:
        """Seconds of the stage that runs, of whose part ``eta`` are left."""
        return eta + self.rest * (self._own or 0.0)

    def _rate(self, stage: Ahead) -> tuple[float, bool]:
        """Seconds per unit of a later stage, and whether that is more than a guess."""
        running = [] if self._own is None else [(self.running, self._own * self.running.work)]
        like = (
            [pair for pair in self.finished if pair[0].config == stage.config],
            [pair for pair in self.finished if pair[0].kind == stage.kind],
            [pair for pair in running if pair[0].kind == stage.kind],
        )
        for group in like:
            if rate := _rate_of(group):
                return rate, True
        rate = _rate_of([*self.finished, *running])
        return rate or float(self.estimated), self.estimated or not stage.work

    def text(self, eta: float, share: float) -> str:
        """Text after the remaining time of the stage, "" for the last one; see :meth:`measure`."""
        if not self.later:
            return ""
        self.measure(eta, share)
        return all_text(*self.seconds_left(eta))


def side_by_side(stages: Iterable[tuple[float, float]], jobs: int, start: float = 0.0) -> float:
    """Seconds until all stages are done, ``jobs`` of them at a time, each begun in order when there
    is room for it; counted from when the first began, or will.

    Args:
        stages: (seconds that one takes, seconds of these that it has worked, 0 if it has not
            begun).
        start: seconds before any can begin, where several may run at a time.
    """
    stages = sorted(stages, key=lambda stage: -stage[1])
    if not stages:
        return 0.0
    now = stages[0][1]
    ends = [start if jobs > 1 else 0.0] * jobs
    for seconds, worked in stages:
        first = ends.index(min(ends))
        ends[first] = max(ends[first], now) + max(seconds - worked, 0.0)
    return max(ends)


def all_text(seconds: float, measured: bool) -> str:
    """Text about the time left of a pipeline, and whether it is more than a guess."""
    text = f"all stages about {duration(seconds)}"
    return text if measured else f"{text} at a guess"


def _rate_of(stages: Sequence[tuple[Ahead, float]]) -> float:
    """Seconds per unit of work; 0 if there is none."""
    work = sum(stage.work for stage, _ in stages)
    return sum(seconds for _, seconds in stages) / work if work else 0.0


def works_of(cfg: CfgNode, kind: str) -> tuple[float, float]:
    """Megapixels that a stage processes, roughly: of its main part, and after that.

    What a supernet trains alone, to be compared with, comes after it. An evaluation, which is
    short, counts nothing.
    """
    if kind == "evaluate":
        return 0.0, 0.0
    if kind == "search":
        settings = SearcherSettings.from_config(cfg).evolution
        images = settings.population * settings.generations
        images *= cfg.SEARCH.CALIBRATION.IMAGES + _validation_images(cfg)
        return images * _megapixels(cfg, [cfg.INPUT.MIN_SIZE_TEST]) * _resized(cfg), 0.0
    step = _LEARNING * cfg.SOLVER.IMS_PER_BATCH * _megapixels(cfg, cfg.INPUT.MIN_SIZE_TRAIN)
    paths, alone = _supernet_steps(cfg)
    sampled = paths * (_resized(cfg) if searchable_backbone(cfg) or is_sampled(cfg) else 1.0)
    return step * steps_of(cfg, cfg.SOLVER.MAX_ITER) * sampled, step * alone


def work_of(cfg: CfgNode, kind: str) -> float:
    """All of :func:`works_of`."""
    return sum(works_of(cfg, kind))


def steps_of(cfg: CfgNode, iterations: int) -> int:
    """Batches that the first iterations of a training learn from: two in an iteration in which
    architecture parameters learn.
    """
    if "HIT_SEARCH" not in cfg or not is_relaxed(cfg):  # a train_net.py of a user's lacks the keys
        return iterations
    start = cfg.HIT_SEARCH.ARCH_START_ITER
    return iterations + (max(0, iterations - start) if start >= 0 else 0)


def _supernet_steps(cfg: CfgNode) -> tuple[int, int]:
    """Paths of an update of the model, and updates of the path that is trained alone."""
    if is_relaxed(cfg) or not (is_sampled(cfg) or searchable_backbone(cfg)):
        return 1, 0
    space = searched_space(cfg)
    paths = len(build_path_sampler(cfg, space)(0))
    return paths, equal_updates(cfg, space, paths) if is_checked(cfg) else 0


def _validation_images(cfg: CfgNode) -> int:
    """Those of the search where the config tells, else as many as calibrate."""
    split, name = cfg.DATASETS.SEARCH_SPLIT, cfg.SEARCH.VAL or cfg.DATASETS.TEST[0]
    told = name.endswith("@search_val") and not split.FRACTION
    return split.SIZE if told else cfg.SEARCH.CALIBRATION.IMAGES


def _resized(cfg: CfgNode) -> float:
    """Mean pixels of an image over the resolutions that are searched, in those of the config."""
    resolutions = [(size / cfg.INPUT.MIN_SIZE_TEST) ** 2 for size in resolutions_of(cfg)]
    return sum(resolutions) / len(resolutions) if resolutions else 1.0


def _megapixels(cfg: CfgNode, sides: Any) -> float:
    if cfg.MODEL.META_ARCHITECTURE == "ImageClassifier":
        sides = [cfg.INPUT.CLASSIFICATION.CROP_SIZE]
    return (sum(sides) / len(sides)) ** 2 / 1e6
