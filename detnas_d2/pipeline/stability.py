"""Stability of scores over the number of calibration images."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from detnas_d2.analysis.rank_statistics import spearman, tau_b
from detnas_d2.config.resolutions import at_own_resolution
from detnas_d2.data import CalibrationBatches
from detnas_d2.engine.evolution_search import load_supernet
from detnas_d2.engine.proposals import Proposals
from detnas_d2.evaluation.build import candidate_evaluator
from detnas_d2.evaluation.recalibration import BNStatistics
from detnas_d2.evaluation.settings import EvaluationSettings
from detnas_d2.utils.errors import CandidateFailed, InputError

logger = logging.getLogger("detnas_d2.search")

_EPS = _BatchNorm(1).eps


def statistics_distance(statistics: BNStatistics, reference: BNStatistics) -> tuple[float, float]:
    """Distance of statistics from a reference, averaged over all channels of all BatchNorms.

    Returns:
        mean of ``|mean - reference mean| / reference deviation``, and mean of ``|ln(deviation /
        reference deviation)|``; both are 0 for equal statistics. Variances have BatchNorm's
        epsilon added, as the network sees them.

    Raises:
        ValueError: the two are not of the same BatchNorms.
    """
    if statistics.moments.keys() != reference.moments.keys() or not reference.moments:
        raise ValueError("expected two statistics of the same path")
    shifts, scales = [], []
    for name, theirs in reference.moments.items():
        ours = statistics.moments[name]
        if not (ours.count and theirs.count):
            continue
        our_std, their_std = (ours.variance + _EPS).sqrt(), (theirs.variance + _EPS).sqrt()
        shifts.append((ours.mean - theirs.mean).abs() / their_std)
        scales.append((our_std / their_std).log().abs())
    return float(torch.cat(shifts).mean()), float(torch.cat(scales).mean())


def calibration_stability(
    cfg: CfgNode, *, sizes: Sequence[int], num_paths: int
) -> list[dict[str, Any]]:
    """Fitness and statistics of random paths for growing numbers of calibration images.

    A smaller calibration set is part of a larger one; the largest is the reference. Images are of
    INPUT.MIN_SIZE_TEST, also where resolutions are searched.

    Args:
        cfg: config of a search, datasets registered; its limits bound the paths.
        sizes: numbers of images, at least two.
        num_paths: number of distinct random paths, at least two; chosen by ``SEARCH.SEED``.

    Returns:
        one dict for each size, smallest first: "images"; "mean_distance" and "std_distance" of the
        statistics to the reference's (:func:`statistics_distance`, mean over paths); "kendall" and
        "spearman" of the fitness with the reference's; "largest_change" of a fitness; and
        "fitness", {path: value}.

    Raises:
        ValueError: too few sizes or paths, or limits that keep too few paths.
    """
    sizes = sorted(set(sizes))
    if len(sizes) < 2 or num_paths < 2:
        raise InputError(f"sizes {sizes}, {num_paths} paths: expected at least two of both")
    cfg = at_own_resolution(cfg)
    proposals, evaluation = Proposals.from_config(cfg), EvaluationSettings.from_config(cfg)
    proposals = proposals.measured()
    proposals.check()
    space, constraint, searcher = proposals.space, proposals.constraint, proposals.searcher
    rng = random.Random(f"stability/{searcher.seed}")
    attempts = num_paths * searcher.evolution.attempts
    drawn = (space.random_path(rng) for _ in range(attempts))
    kept: dict[Any, None] = {}
    for path in drawn:
        if constraint(path.choices):
            kept[path] = None
        if len(kept) == num_paths:
            break
    else:
        raise InputError(f"only {len(kept)} distinct random paths keep {constraint}")
    model = load_supernet(cfg)
    runs = [_evaluate(evaluation, model, list(kept), size) for size in sizes]
    return [_compare(run, runs[-1]) for run in runs]


def _evaluate(
    evaluation: EvaluationSettings, model: nn.Module, paths: list[Any], size: int
) -> dict[str, Any]:
    """Fitness and statistics of the paths with ``size`` calibration images."""
    evaluation = replace(evaluation, calibration=replace(evaluation.calibration, images=size))
    with candidate_evaluator(evaluation, model) as evaluator:
        found = evaluator.statistics(paths)
        fitness = {}
        for number, (path, outcome) in enumerate(evaluator.evaluate_many(paths), start=1):
            if isinstance(outcome, CandidateFailed):
                raise outcome
            fitness[path] = outcome.fitness
            logger.info("%d calibration images: path %d/%d", size, number, len(paths))
    assert isinstance(evaluator.calibration, CalibrationBatches)
    images = sum(len(batch) for batch in evaluator.calibration.image_indices)
    return {
        "images": images,
        "fitness": {str(path): fitness[path] for path in paths},
        "statistics": [found[path] for path in paths],
    }


def _compare(run: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    pairs = zip(run["statistics"], reference["statistics"], strict=True)
    means, deviations = zip(*(statistics_distance(a, b) for a, b in pairs), strict=True)
    ours, theirs = list(run["fitness"].values()), list(reference["fitness"].values())
    return {
        "images": run["images"],
        "mean_distance": sum(means) / len(means),
        "std_distance": sum(deviations) / len(deviations),
        "kendall": tau_b(ours, theirs),
        "spearman": spearman(ours, theirs),
        "largest_change": max(abs(a - b) for a, b in zip(ours, theirs, strict=True)),
        "fitness": run["fitness"],
    }
