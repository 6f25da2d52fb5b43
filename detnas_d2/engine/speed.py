"""Seconds of an iteration, of an image and of a candidate, measured on a few of them.

Medians: a second in which the machine was busy with something else counts for nothing.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn

from detnas_d2.data import build_test_loader, build_train_loader
from detnas_d2.data.datasets.registration import cache_dir
from detnas_d2.data.datasets.sample import register_sample
from detnas_d2.engine.supernet_check.scores import untouched
from detnas_d2.engine.trainers.bilevel_step import BilevelStep
from detnas_d2.engine.trainers.trainer import Trainer
from detnas_d2.evaluation.build import candidate_evaluator
from detnas_d2.evaluation.candidate import Evaluation
from detnas_d2.evaluation.settings import EvaluationSettings
from detnas_d2.layers.kept_weights import weights_stay
from detnas_d2.modeling import find_supernet
from detnas_d2.utils.timing import wait_for

_ROUNDS, _TOGETHER = 3, 2
"""Times that candidates are scored, and how many together."""


@dataclass(frozen=True)
class CandidateSeconds:
    """Of one candidate: for an image of its statistics, and for one that it is scored on."""

    calibration: float
    scoring: float


def step_seconds(trainer: Trainer, *, warm_up: int = 2, steps: int = 5, limit: float = 0) -> float:
    """Median of some iterations of a trainer that has not begun, of ``trainer.model``.

    Args:
        limit: seconds after which no further one begins; one is measured at least.
    """
    step = trainer.step
    step.set_data(trainer.batches(0))
    if isinstance(step, BilevelStep):
        halves = trainer.cfg.HIT_SEARCH.ARCH_TRAIN
        step.set_arch_data(build_train_loader(trainer.cfg, start_iter=0, dataset_names=halves))
    with EventStorage(0):
        for step.iter in range(warm_up):
            step.run_step()
        _wait(step.model)
        seconds: list[float] = []
        while len(seconds) < steps and not (limit and sum(seconds) > limit):
            start, step.iter = time.perf_counter(), warm_up + len(seconds)
            step.run_step()
            _wait(step.model)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def image_seconds(cfg: CfgNode, model: nn.Module, *, images: int = 10) -> float:
    """Of the datasets ``cfg`` is tested on: the median of each one's first batches, of so many
    images and three at least, and of these the mean.
    """
    found = []
    for name in cfg.DATASETS.TEST:
        seconds: list[float] = []
        with untouched(model), torch.no_grad(), weights_stay(model):
            model.eval()
            start = time.perf_counter()
            for inputs in build_test_loader(cfg, name):
                model(inputs)
                _wait(model)
                seconds.append((time.perf_counter() - start) / len(inputs))
                if len(seconds) >= max(3, images / len(inputs)):
                    break
                start = time.perf_counter()
        found.append(statistics.median(seconds))
    return statistics.fmean(found)


def candidate_seconds(cfg: CfgNode, model: nn.Module, *, images: int = 8) -> CandidateSeconds:
    """Of a search of ``cfg`` in ``model``: medians of a few candidates on a few images.

    Random weights detect as much as is allowed, so that this is rather too long than too short.
    """
    settings = EvaluationSettings.from_config(cfg)
    of = settings.calibration
    calibration = min(of.images, max(images, of.batch_size))
    settings = replace(
        settings,
        validation=register_sample(settings.validation, images, 0, cache_dir(cfg)),
        calibration=replace(of, images=calibration),
        scoring_workers=0,
        image_cache_gib=0.0,
    )
    supernet: Any = find_supernet(model)
    draws = (supernet.space.random_path(random.Random(f"speed/{n}")) for n in range(100))
    first, *others = list(dict.fromkeys(draws))[: 1 + _ROUNDS * _TOGETHER]
    whole: list[float] = []
    calibrating: list[float] = []
    with untouched(model), candidate_evaluator(settings, model) as evaluator:
        model.eval()
        list(evaluator.evaluate_many([first]))  # the first pass of a process is slower
        for begin in range(0, len(others), _TOGETHER):
            start, paths = time.perf_counter(), others[begin : begin + _TOGETHER]
            found = [outcome for _, outcome in evaluator.evaluate_many(paths)]
            whole.append((time.perf_counter() - start) / len(found))
            good = [outcome.seconds for outcome in found if isinstance(outcome, Evaluation)]
            calibrating += [seconds["recalibration"] for seconds in good]
    all_ = statistics.median(whole)
    first_part = statistics.median(calibrating) if calibrating else all_ / 2
    shown = len(evaluator.data_loader.dataset)  # type: ignore[attr-defined]
    return CandidateSeconds(first_part / calibration, max(all_ - first_part, 0.0) / shown)


def _wait(model: nn.Module) -> None:
    """Until a GPU has done what it was told."""
    wait_for(next(model.parameters()).device)
