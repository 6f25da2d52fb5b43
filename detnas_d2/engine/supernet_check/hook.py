"""Hook that scores a supernet's fixed paths before, during and at the end of its training."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import asdict
from functools import cached_property
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from detnas_d2.engine.supernet_check.plan import CheckPlan, plan_of
from detnas_d2.engine.supernet_check.scores import (
    PathScore,
    initial_scores,
    known_scores,
    mean_of,
    score_paths,
)
from detnas_d2.evaluation.settings import EvaluationSettings
from detnas_d2.search_space.space import PathSpace

logger = logging.getLogger("detnas_d2.supernet")

RESULT_FILE = "supernet.json"
STANDALONE = "standalone"
"""Folder of the path that is trained alone, in that of the supernet."""
_WRITTEN = 20
"""Iterations between two writes of Detectron2's writers, which know one value of each."""


class SupernetCheck(HookBase):
    """Scores of the fixed paths of a supernet in training, as curves ``supernet/score_*``.

    Chance level and the scores of the weights at the start are measured before the first iteration
    and kept in the checkpoints. On all ranks; after the checkpointer, before the writers.

    Attributes:
        start: with the weights at the start; None if the training was begun without this check.
        initial: with random weights.
        final: at the end, once it is reached.
    """

    def __init__(self, cfg: CfgNode, space: PathSpace) -> None:
        self.cfg, self.space = cfg, space
        self.start: tuple[PathScore, ...] | None = None
        self.initial: tuple[PathScore, ...] = ()
        self.final: tuple[PathScore, ...] | None = None
        self._stored: dict[str, Any] = {}

    @cached_property
    def plan(self) -> CheckPlan:
        """Made when the datasets are registered (collective)."""
        return plan_of(self.cfg, self.space)

    def score(self, settings: EvaluationSettings) -> tuple[PathScore, ...]:
        """Scores with the present weights (collective)."""
        return score_paths(settings, self.trainer.model, self.plan.paths)

    def before_train(self) -> None:
        begins = self.trainer.start_iter == 0
        if begins and comm.is_main_process():
            self._remove_old()
        self.measure_start(begins=begins)
        if begins:
            self._tell(self.start or (), "before training")

    def measure_start(self, *, begins: bool) -> None:
        """Measures start and chance level, where no checkpoint holds them (collective).

        Args:
            begins: the present weights are those at the start.
        """
        if self._stored.get("key") == self.plan.key:
            self.start = _read(self._stored["start"])
            self.initial = _read(self._stored["initial"]) or ()
            return
        self.start = self.score(self.plan.whole) if begins else None
        if self.start is None or self.cfg.MODEL.WEIGHTS:
            self.initial = initial_scores(self.plan.whole, self.cfg, self.plan.paths)
        else:
            self.initial = self.start

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self.final = self.score(self.plan.whole)
            self._tell(self.final, "at the end")
            return
        period = self.cfg.SUPERNET.CHECK.PERIOD
        period = max(_WRITTEN, self.trainer.max_iter // 10) if period < 0 else period
        if period and done % period == 0:
            self._tell(self.score(self.plan.part), f"after {done} iterations")

    def _tell(self, scores: tuple[PathScore, ...], when: str) -> None:
        known = known_scores(scores)
        failed = [found for found in scores if found.score is None]
        for found in failed:
            logger.warning("Supernet %s: %s: %s", when, found.path, found.error)
        mean = mean_of(scores)
        if mean is None:
            return
        values = {"mean": mean, "min": min(known), "max": max(known)}
        self.trainer.storage.put_scalars(
            **{f"supernet/score_{name}": value for name, value in values.items()},
            smoothing_hint=False,
        )
        logger.info(
            "Supernet %s: %s of %d fixed paths %.2f to %.2f, mean %.2f",
            when,
            self.plan.metric,
            len(known),
            min(known),
            max(known),
            mean,
        )

    def _remove_old(self) -> None:
        """Removes what an earlier training in this folder left."""
        folder = self.cfg.OUTPUT_DIR
        shutil.rmtree(os.path.join(folder, STANDALONE), ignore_errors=True)
        if os.path.exists(os.path.join(folder, RESULT_FILE)):
            os.remove(os.path.join(folder, RESULT_FILE))

    def state_dict(self) -> dict[str, Any]:
        if not self.initial:  # not measured yet
            return self._stored
        start = None if self.start is None else [asdict(found) for found in self.start]
        initial = [asdict(found) for found in self.initial]
        return {"key": self.plan.key, "start": start, "initial": initial}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._stored = state_dict


def _read(stored: list[dict[str, Any]] | None) -> tuple[PathScore, ...] | None:
    return None if stored is None else tuple(PathScore(**found) for found in stored)
