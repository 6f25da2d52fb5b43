"""Scores of fixed paths during a training, which goes on as if nothing had been scored."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from detnas_d2.engine.telling import tell_part
from detnas_d2.engine.trainers.iteration import loss_normalizers, set_loss_normalizers
from detnas_d2.evaluation import CandidateFailed
from detnas_d2.evaluation.build import candidate_evaluator
from detnas_d2.evaluation.passes import log_pass
from detnas_d2.evaluation.settings import EvaluationSettings
from detnas_d2.search_space import Path


@dataclass(frozen=True)
class PathScore:
    """What a search would take for the fitness of a path.

    Attributes:
        path: its text.
        score: None if it has none; ``error`` then says why.
    """

    path: str
    score: float | None
    error: str | None = None


def score_paths(
    settings: EvaluationSettings, model: nn.Module, paths: Sequence[Path]
) -> tuple[PathScore, ...]:
    """Scores of the paths with their own BatchNorm statistics, in their order (collective).

    Nothing of the model, of its modes and of random generators is altered.
    """
    with untouched(model), candidate_evaluator(settings, model) as evaluator:
        model.eval()
        evaluator.on_pass = _passed
        found = dict(evaluator.evaluate_many(paths))
    return tuple(_path_score(path, found[path], settings.metric) for path in paths)


def _passed(stage: str, candidates: int, done: int, total: int) -> None:
    log_pass(stage, candidates, done, total)
    tell_part(f"checking {candidates} fixed paths: {stage}", done, total)


def _path_score(path: Path, outcome: Any, metric: str) -> PathScore:
    if isinstance(outcome, CandidateFailed):
        return PathScore(str(path), None, str(outcome))
    if not math.isfinite(outcome.fitness):
        return PathScore(str(path), None, f"{metric} is not defined")
    return PathScore(str(path), outcome.fitness)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Afterwards modes, running averages of losses and random generators are what they were."""
    modes = {module: module.training for module in model.modules()}
    normalizers = loss_normalizers(model)
    states = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        set_loss_normalizers(model, normalizers)
        for module, mode in modes.items():
            module.training = mode


def initial_scores(
    settings: EvaluationSettings, cfg: CfgNode, paths: Sequence[Path]
) -> tuple[PathScore, ...]:
    """Scores with random weights, drawn from the seed (collective)."""
    devices = [torch.cuda.current_device()] if cfg.MODEL.DEVICE.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(cfg.SEED)
        model = build_model(cfg)
    return score_paths(settings, model, paths)


def mean_of(scores: Sequence[PathScore]) -> float | None:
    """Mean of the scores there are."""
    known = known_scores(scores)
    return statistics.fmean(known) if known else None


def known_scores(scores: Sequence[PathScore]) -> list[float]:
    return [found.score for found in scores if found.score is not None]
