"""Plan of a check: which paths are scored, on what, and what chance would score."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from detnas_d2.data.datasets.registration import cache_dir
from detnas_d2.data.datasets.sample import register_sample
from detnas_d2.data.loaders.train import load_training_dicts
from detnas_d2.evaluation.scorable import check_scorable
from detnas_d2.evaluation.scoring import DEFAULT_METRICS, evaluator_type, known_metrics
from detnas_d2.evaluation.settings import EvaluationSettings
from detnas_d2.search_space import Path
from detnas_d2.search_space.space import PathSpace
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import digest

_PART = 4
"""A check during training takes one image in so many."""
_REMEDY = "name another dataset in SUPERNET.CHECK.VAL, or set SUPERNET.CHECK.PATHS 0: no check"


@dataclass(frozen=True)
class CheckPlan:
    """Paths and the settings of their scores.

    Attributes:
        whole, part: settings for the check at the end, and for those during training.
        images: that ``whole`` scores on.
        constant: of classification, the share of right answers of one that is always the same, in
            percent; None for other tasks.
    """

    paths: tuple[Path, ...]
    whole: EvaluationSettings
    part: EvaluationSettings
    images: int
    constant: float | None

    @property
    def metric(self) -> str:
        return self.whole.metric

    @property
    def key(self) -> str:
        """Digest of all that decides the scores besides the weights."""
        return digest([[str(path) for path in self.paths], self.whole.fingerprint()])


def fixed_paths(space: PathSpace, seed: int, count: int) -> tuple[Path, ...]:
    """``count`` different random paths, or all where there are fewer: a function of the seed."""
    count, found, draw = min(count, math.prod(space.cardinalities)), dict[Path, None](), 0
    while len(found) < count:
        found[space.random_path(random.Random(f"check/{seed}/{draw}"))] = None
        draw += 1
    return tuple(found)


def is_checked(cfg: CfgNode) -> bool:
    """Whether a supernet that ``cfg`` trains is checked."""
    return bool(cfg.SUPERNET.CHECK.PATHS)


def equal_updates(cfg: CfgNode, space: PathSpace, paths_per_update: int) -> int:
    """Updates of the path alone, by ``SUPERNET.CHECK.STANDALONE``: -1 stands for those that an
    operation of the supernet gets on average. 0: it is not trained.
    """
    wanted = cfg.SUPERNET.CHECK.STANDALONE
    if wanted >= 0:
        return wanted
    operations = statistics.fmean(space.cardinalities)
    return max(1, round(cfg.SOLVER.MAX_ITER * paths_per_update / operations))


def check_settings(cfg: CfgNode) -> EvaluationSettings:
    """Settings by which a search of this config would score, on the data of ``SUPERNET.CHECK``.

    The datasets are registered. ``SEARCH.METRIC`` counts where the dataset has it; otherwise, as
    for a classification supernet before a search of detectors, the usual metric.

    Raises:
        InputError: nothing to score on, or no score is defined on it.
    """
    check = cfg.SUPERNET.CHECK
    if not (check.VAL or cfg.DATASETS.TEST):
        raise InputError(
            "SUPERNET.CHECK.VAL and DATASETS.TEST are empty: nothing tells whether the supernet "
            f"learned; {_REMEDY}"
        )
    cfg = cfg.clone()
    cfg.defrost()
    search = cfg.SEARCH
    search.VAL = check.VAL or cfg.DATASETS.TEST[0]
    search.CALIBRATION.DATASET = cfg.DATASETS.TRAIN[0]
    search.CALIBRATION.IMAGES = check.CALIBRATION_IMAGES
    # Scored in this process; few images, which need no file of their own.
    search.SCORING_WORKERS, search.IMAGE_CACHE_GIB = 0, 0.0
    try:
        kind = evaluator_type(search.VAL)
    except InputError as error:
        raise InputError(f"{error}; or {_REMEDY}") from None
    settings = EvaluationSettings.from_config(cfg)
    known = known_metrics(search.VAL, masks=settings.masks, keypoints=settings.keypoints > 0)
    if search.METRIC not in known:
        settings = replace(settings, named_metric=DEFAULT_METRICS[kind])
    check_scorable(settings.validation, settings.metric, remedy=_REMEDY)
    return settings


def plan_of(cfg: CfgNode, space: PathSpace) -> CheckPlan:
    """The plan of a supernet's training; all processes must call this.

    Raises:
        InputError: see :func:`check_settings`.
    """
    settings, check = check_settings(cfg), cfg.SUPERNET.CHECK
    val, train = settings.validation, settings.calibration.dataset
    images = min(check.IMAGES, len(DatasetCatalog.get(val)))
    calibration = min(check.CALIBRATION_IMAGES, len(load_training_dicts(cfg, [train])))
    whole, part = (
        replace(
            settings,
            validation=register_sample(val, math.ceil(images / n), cfg.SEED, cache_dir(cfg)),
            calibration=replace(settings.calibration, images=math.ceil(calibration / n)),
        )
        for n in (1, _PART)
    )
    check_scorable(
        whole.validation, whole.metric, remedy=f"raise SUPERNET.CHECK.IMAGES {check.IMAGES}"
    )
    try:
        check_scorable(part.validation, part.metric)
    except InputError:  # too few images for every class to have an object
        part = replace(part, validation=whole.validation)
    return CheckPlan(
        fixed_paths(space, cfg.SEED, check.PATHS),
        whole,
        part,
        len(DatasetCatalog.get(whole.validation)),
        constant_answer(whole.metric, whole.validation, train),
    )


def constant_answer(metric: str, validation: str, train: str) -> float | None:
    """Top-k accuracy, in percent, of an answer that is the same for every image: the k classes most
    frequent in ``train``, or k of all classes if that is more. None for other metrics.
    """
    task, _, name = metric.partition("/")
    if task != "classification":
        return None
    k = int(name.removeprefix("top"))
    classes = len(MetadataCatalog.get(validation).thing_classes)
    frequent = {label for label, _ in Counter(_labels(train)).most_common(k)}
    labels = _labels(validation)
    share = sum(label in frequent for label in labels) / len(labels)
    return 100 * max(share, min(k / classes, 1.0))


def _labels(name: str) -> list[Any]:
    return [sample["label"] for sample in DatasetCatalog.get(name)]
