"""A stand-alone training of one network, in a worker process that trains many after another."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation.testing import flatten_results_dict

from detnas_d2.data.loaders.image_memory import images_read_once
from detnas_d2.engine.defaults import prepare
from detnas_d2.engine.speed import image_seconds, step_seconds
from detnas_d2.engine.training import train, trainer_class


@dataclass(frozen=True)
class Job:
    """Trainings of one network, one after the other.

    Attributes:
        configs: complete, with path, seed and folder; all but the first start from the weights of
            the one before.
        measure: run a few steps of each, and tell how long all of them would take.
    """

    configs: tuple[CfgNode, ...]
    measure: bool = False


@dataclass(frozen=True)
class Outcome:
    """``metrics`` of the last training's evaluation, finite ones; ``seconds`` that all took."""

    metrics: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class TruthWorker:
    """Makes the function that a worker process calls.

    Attributes:
        number: of the worker, from 0; it takes the GPU of that number, if there are any.
        log: file for what the process prints on stderr.
    """

    number: int
    log: str

    def __call__(self) -> Callable[[Job], Outcome]:
        with open(self.log, "a") as log, open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)  # the folders of the trainings have their logs
            os.dup2(log.fileno(), 2)
        torch.set_num_threads(1)
        if torch.cuda.is_available():
            torch.cuda.set_device(self.number % torch.cuda.device_count())
        memory = contextlib.ExitStack()
        memory.enter_context(images_read_once())
        atexit.register(memory.close)  # until the process ends
        return run_job


def run_job(job: Job) -> Outcome:
    """Trains, or goes on with a training that was ended; or measures how long that takes."""
    start = time.monotonic()
    if job.measure:
        return Outcome({}, sum(map(_seconds_of, job.configs)))
    results: dict[str, float] = {}
    for cfg in job.configs:
        _prepare(cfg)
        results = flatten_results_dict(train(cfg, resume=True) or {})
    metrics = {key: float(value) for key, value in results.items() if math.isfinite(value)}
    return Outcome(metrics, time.monotonic() - start)


def _prepare(cfg: CfgNode) -> None:
    prepare(cfg, argparse.Namespace(config_file="", eval_only=False, resume=True))


def _seconds_of(cfg: CfgNode) -> float:
    """Estimate for a whole training with its evaluation."""
    _prepare(cfg)
    trainer = trainer_class(cfg)(cfg)
    seconds = step_seconds(trainer) * cfg.SOLVER.MAX_ITER
    tested = sum(len(DatasetCatalog.get(name)) for name in cfg.DATASETS.TEST)
    if tested:
        seconds += tested * image_seconds(cfg, trainer.model)
    logging.getLogger(__name__).info("Estimated: %.0f s", seconds)
    return seconds
