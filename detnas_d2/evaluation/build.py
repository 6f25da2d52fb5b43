"""The evaluator of candidates that a config describes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import nn

from detnas_d2.config.tools import flatten
from detnas_d2.data import (
    build_calibration_batches,
    build_test_loader,
    cached_loaders,
    register_datasets,
)
from detnas_d2.evaluation.evaluator_scoring import EvaluatorScoring, Scoring
from detnas_d2.evaluation.evaluators import candidate_evaluators
from detnas_d2.evaluation.population import PopulationEvaluator
from detnas_d2.evaluation.scorable import check_scorable
from detnas_d2.evaluation.scoring import check_metric, metric_name, metric_task
from detnas_d2.evaluation.scoring_workers import ScoringPool, ScoringTask
from detnas_d2.evaluation.sequential import SequentialEvaluator
from detnas_d2.utils.errors import InputError

EVALUATORS = ("population", "sequential")
_WHOLE_IMAGES = ("sem_seg", "panoptic_seg")


@contextmanager
def candidate_evaluator(
    cfg: CfgNode, model: nn.Module
) -> Iterator[PopulationEvaluator | SequentialEvaluator]:
    """The evaluator that ``cfg.SEARCH`` describes; its workers end with the block.

    Args:
        model: holds the supernet with its weights.

    Raises:
        ValueError: ``SEARCH.EVALUATOR`` or another key is wrong, naming it.
    """
    check_evaluator(cfg)
    kind, calibration = cfg.SEARCH.EVALUATOR, cfg.SEARCH.CALIBRATION
    validation = validation_set(cfg)
    batches = build_calibration_batches(
        cfg,
        calibration_set(cfg),
        num_images=calibration.IMAGES,
        batch_size=calibration.BATCH_SIZE,
        seed=calibration.SEED,
    )
    common: dict[str, Any] = {
        "calibration": batches,
        "data_loader": build_test_loader(cfg, validation),
        "metric": metric_name(cfg, validation),
        "seed": calibration.SEED,
    }
    if kind == "sequential":
        yield SequentialEvaluator(
            model, build_evaluator=candidate_evaluators(cfg, validation), **common
        )
        return
    common["data_loader"], common["calibration"] = cached_loaders(
        common["data_loader"], batches, folder=cfg.OUTPUT_DIR, gib=cfg.SEARCH.IMAGE_CACHE_GIB
    )
    key = json.dumps([evaluation_fingerprint(cfg), batches.image_indices], sort_keys=True)
    common |= {"chunk": cfg.SEARCH.CHUNK, "calibration_key": key}
    with build_scoring(cfg) as scoring:
        yield PopulationEvaluator(model, scoring=scoring, **common)


def build_scoring(cfg: CfgNode) -> AbstractContextManager[Scoring]:
    """Scoring of the candidates of a population: workers where the outputs leave as arrays.

    Masks of whole images (semantic, panoptic) are evaluated where they are made.
    """
    validation = validation_set(cfg)
    if metric_task(cfg, validation) in _WHOLE_IMAGES:
        return nullcontext(EvaluatorScoring(candidate_evaluators(cfg, validation)))
    return ScoringPool(ScoringTask.of(cfg, validation), workers=cfg.SEARCH.SCORING_WORKERS)


def check_evaluator(cfg: CfgNode) -> None:
    """Raises ValueError if ``SEARCH.EVALUATOR`` is none."""
    kind = cfg.SEARCH.EVALUATOR
    if kind not in EVALUATORS:
        raise InputError(f"SEARCH.EVALUATOR {kind!r}: expected one of {', '.join(EVALUATORS)}")


def check_validation(cfg: CfgNode) -> None:
    """Readies the data sets of a search, and checks that candidates can get a score on them.

    Raises:
        ValueError: naming the data set, and what is unknown or the objects that the metric lacks.
    """
    name = validation_set(cfg)
    register_datasets(cfg, (name, calibration_set(cfg)))
    check_metric(cfg, name)
    check_scorable(name, metric_name(cfg, name))
    wanted, there = cfg.SEARCH.CALIBRATION.IMAGES, len(DatasetCatalog.get(calibration_set(cfg)))
    if wanted > there:
        raise InputError(
            f"SEARCH.CALIBRATION.IMAGES is {wanted}: expected at most {there}, the images of "
            f"{calibration_set(cfg)!r}"
        )


def validation_set(cfg: CfgNode) -> str:
    """Name of the data set that candidates are scored on."""
    if not (cfg.SEARCH.VAL or cfg.DATASETS.TEST):
        raise InputError("SEARCH.VAL and DATASETS.TEST are empty: nothing scores candidates")
    return cfg.SEARCH.VAL or cfg.DATASETS.TEST[0]


def calibration_set(cfg: CfgNode) -> str:
    """Name of the data set that statistics are computed on."""
    if not (cfg.SEARCH.CALIBRATION.DATASET or cfg.DATASETS.TRAIN):
        raise InputError(
            "SEARCH.CALIBRATION.DATASET and DATASETS.TRAIN are empty: nothing to calibrate with"
        )
    return cfg.SEARCH.CALIBRATION.DATASET or cfg.DATASETS.TRAIN[0]


def evaluation_fingerprint(cfg: CfgNode) -> dict[str, Any]:
    """Settings that, besides weights, space, searcher and latencies, decide which candidates there
    are and their fitness.
    """
    return {
        "validation": validation_set(cfg),
        "calibration": {**cfg.SEARCH.CALIBRATION, "DATASET": calibration_set(cfg)},
        "metric": metric_name(cfg, validation_set(cfg)),
        "split": dict(cfg.DATASETS.SEARCH_SPLIT),
        "input": {k: cfg.INPUT[k] for k in ("MIN_SIZE_TEST", "MAX_SIZE_TEST", "FORMAT")},
        "model": {k: v for k, v in flatten(cfg.MODEL).items() if k not in ("WEIGHTS", "DEVICE")},
        "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "cost_input": list(cfg.SEARCH.MAX_MACS_INPUT),
    }
