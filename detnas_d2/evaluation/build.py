"""Evaluators of candidates, from their settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from detectron2.evaluation import DatasetEvaluator
from torch import nn

from detnas_d2.data import cached_loaders
from detnas_d2.evaluation.evaluator_scoring import EvaluatorScoring, Scoring
from detnas_d2.evaluation.evaluators import candidate_evaluators
from detnas_d2.evaluation.graphed_supernet import graphed_calls
from detnas_d2.evaluation.population import PopulationEvaluator
from detnas_d2.evaluation.resized import ResizedEvaluator
from detnas_d2.evaluation.scoring_workers import ScoringPool, ScoringTask
from detnas_d2.evaluation.sequential import SequentialEvaluator
from detnas_d2.evaluation.settings import EvaluationSettings

_WHOLE_IMAGES = ("sem_seg", "panoptic_seg")


@contextmanager
def candidate_evaluator(
    settings: EvaluationSettings, model: nn.Module
) -> Iterator[PopulationEvaluator]:
    """The evaluator of a search; its workers end with the block.

    Args:
        model: holds the supernet with its weights.

    Raises:
        InputError: a setting is wrong, naming its key.
    """
    build = _population(settings, model)
    with build_scoring(settings) as scoring:
        yield build(scoring=scoring)


@contextmanager
def resized_evaluator(
    settings: Mapping[int, EvaluationSettings], model: nn.Module
) -> Iterator[ResizedEvaluator]:
    """:func:`candidate_evaluator` of paths with a resolution.

    Args:
        settings: of each resolution, on the same datasets.
    """
    builds = {resolution: _population(own, model) for resolution, own in settings.items()}
    with build_scoring(next(iter(settings.values()))) as scoring:
        yield ResizedEvaluator({size: build(scoring=scoring) for size, build in builds.items()})


def _population(
    settings: EvaluationSettings, model: nn.Module
) -> Callable[..., PopulationEvaluator]:
    """Makes an evaluator that only lacks its ``scoring``."""
    batches = settings.calibration_batches()
    key = json.dumps([settings.fingerprint(), batches.image_indices], sort_keys=True)
    loader, calibration = cached_loaders(
        settings.data_loader(),
        batches,
        folder=settings.output_dir,
        gib=settings.image_cache_gib,
        file=settings.cache_file,
    )
    return partial(
        PopulationEvaluator,
        model,
        calibration=calibration,
        data_loader=loader,
        metric=settings.metric,
        seed=settings.calibration.seed,
        chunk=settings.chunk,
        calibration_key=key,
        together=settings.calibration.together,
        graphs=graphed_calls(model, settings.cuda_graphs),
    )


def sequential_evaluator(settings: EvaluationSettings, model: nn.Module) -> SequentialEvaluator:
    """The reference, one candidate after the other: the same results, by Detectron2's evaluator."""
    return SequentialEvaluator(
        model,
        calibration=settings.calibration_batches(),
        data_loader=settings.data_loader(),
        build_evaluator=_evaluators(settings),
        metric=settings.metric,
        seed=settings.calibration.seed,
    )


def build_scoring(settings: EvaluationSettings) -> AbstractContextManager[Scoring]:
    """Scoring of the candidates of a population: workers where the outputs leave as arrays.

    Masks of whole images (semantic, panoptic) are evaluated where they are made.
    """
    if settings.task in _WHOLE_IMAGES:
        return nullcontext(EvaluatorScoring(_evaluators(settings)))
    task = ScoringTask.of(
        settings.validation, output_dir=settings.output_dir, sigmas=settings.sigmas
    )
    return ScoringPool(task, workers=settings.scoring_workers)


def _evaluators(settings: EvaluationSettings) -> Callable[[], DatasetEvaluator]:
    return candidate_evaluators(
        settings.validation,
        settings.task,
        output_dir=settings.output_dir,
        sigmas=settings.sigmas,
    )
