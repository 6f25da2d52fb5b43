"""Seconds of an iteration, of an image and of a candidate, measured on a few of them."""

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
from detnas_d2.modeling import find_supernet

_CANDIDATES = 3


@dataclass(frozen=True)
class CandidateSeconds:
    """Of one candidate: for an image of its statistics, and for one that it is scored on."""

    calibration: float
    scoring: float


def step_seconds(trainer: Trainer, *, warm_up: int = 2, steps: int = 5, limit: float = 0) -> float:
    """Mean of some iterations of a trainer that has not begun, of ``trainer.model``.

    Args:
        limit: seconds after which no further one begins; one is measured at least.
    """
    step = trainer.step
    step.set_data(build_train_loader(trainer.cfg, start_iter=0))
    if isinstance(step, BilevelStep):
        halves = trainer.cfg.HIT_SEARCH.ARCH_TRAIN
        step.set_arch_data(build_train_loader(trainer.cfg, start_iter=0, dataset_names=halves))
    with EventStorage(0):
        for step.iter in range(warm_up):
            step.run_step()
        start, done = time.perf_counter(), 0
        while done < steps:
            step.iter = warm_up + done
            step.run_step()
            done += 1
            _wait(step.model)
            if limit and time.perf_counter() - start > limit:
                break
    return (time.perf_counter() - start) / done


def image_seconds(cfg: CfgNode, model: nn.Module, *, images: int = 10) -> float:
    """Mean of the first images of the datasets ``cfg`` is tested on, one after the other."""
    seconds = []
    for name in cfg.DATASETS.TEST:
        done, start = 0, time.perf_counter()
        with untouched(model), torch.no_grad():
            model.eval()
            for inputs in build_test_loader(cfg, name):
                model(inputs)
                done += len(inputs)
                if done >= images:
                    break
        seconds.append((time.perf_counter() - start) / done)
    return statistics.fmean(seconds)


def candidate_seconds(cfg: CfgNode, model: nn.Module, *, images: int = 8) -> CandidateSeconds:
    """Of a search of ``cfg`` in ``model``, by a few candidates on a few images.

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
    paths = list(dict.fromkeys(draws))[: _CANDIDATES + 1]
    with untouched(model), candidate_evaluator(settings, model) as evaluator:
        model.eval()
        list(evaluator.evaluate_many(paths[:1]))  # the first pass of a process is slower
        start = time.perf_counter()
        found = [outcome for _, outcome in evaluator.evaluate_many(paths[1:])]
        whole = (time.perf_counter() - start) / len(found)
    good = [outcome.seconds for outcome in found if isinstance(outcome, Evaluation)]
    spent = statistics.fmean(seconds["recalibration"] for seconds in good) if good else whole / 2
    shown = len(evaluator.data_loader.dataset)  # type: ignore[attr-defined]
    return CandidateSeconds(spent / calibration, (whole - spent) / shown)


def _wait(model: nn.Module) -> None:
    """Until a GPU has done what it was told."""
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()
