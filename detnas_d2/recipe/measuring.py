"""Speeds of a recipe on this machine: a few steps of its real stages, before the first begins."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Sequence

from detectron2.config import CfgNode

from detnas_d2.config.tools import load_config
from detnas_d2.data.datasets.registration import CACHE_FOLDER
from detnas_d2.engine.architectures import decoded_example, searched_space
from detnas_d2.engine.defaults import LOGGERS, prepare
from detnas_d2.engine.screen import quiet_command
from detnas_d2.engine.speed import candidate_seconds, image_seconds, step_seconds
from detnas_d2.engine.training import trainer_class
from detnas_d2.recipe.choice import HAND_MADE_OP, Recipe
from detnas_d2.recipe.facts import DataFacts, Machine
from detnas_d2.recipe.inputs import Data, Settings
from detnas_d2.recipe.schedule import Plan, Rates, Schedule
from detnas_d2.recipe.writing import texts_of, write_files
from detnas_d2.utils.screen import Line

FOLDER = "measured"
"""Below the run's: configs and log of what was measured."""

_TRIAL = Schedule(supernet=1000, population=5, generations=2, tuning=200, networks=1)
_STEPS, _SECONDS = 15, 5.0
_FILES = 1.0
"""Seconds of a stage for its files: checkpoints, tables."""
_UNKNOWN = Rates(0.0, 0.0, 0.0, 0.0, 0.0)


def measure(
    recipe: Recipe, facts: DataFacts, machine: Machine, data: Data, settings: Settings
) -> Rates:
    """The speeds, in a folder below the run's, which is emptied first.

    On several processes one measures its own share of a batch. Nothing is shown meanwhile: the
    stages themselves warn of what there is to warn of.
    """
    line = Line()
    line.show(lambda: "measuring a few steps of every stage")
    try:
        with quiet_command(LOGGERS, line):
            return _measured(recipe, facts, machine, data, settings)
    finally:
        line.clear()


def write_trial(recipe: Recipe, facts: DataFacts, data: Data, settings: Settings) -> str:
    """Writes configs of a run of some length, to be measured, into a folder below the run's, which
    is emptied first; returns it.
    """
    folder = os.path.join(settings.output, FOLDER)
    shutil.rmtree(folder, ignore_errors=True)
    write_files(folder, texts_of(Plan(recipe, facts, _UNKNOWN), _TRIAL, data, settings))
    return folder


def _measured(
    recipe: Recipe, facts: DataFacts, machine: Machine, data: Data, settings: Settings
) -> Rates:
    folder = write_trial(recipe, facts, data, settings)
    opts = [
        "OUTPUT_DIR", folder,
        "DATASETS.CACHE_DIR", os.path.join(settings.output, CACHE_FOLDER),
        "SUPERNET.CHECK.PATHS", 0,
    ]  # fmt: skip
    if recipe.method == "hit":
        return _of_gradient(folder, opts, machine)
    search = _ready(os.path.join(folder, "search.yaml"), opts, machine)
    trainer = trainer_class(search)(search)
    step = step_seconds(trainer, steps=_STEPS, limit=_SECONDS)
    candidate = candidate_seconds(search, trainer.model)
    images = recipe.calibration * candidate.calibration + recipe.scoring * candidate.scoring
    path = str(searched_space(search).uniform_path(HAND_MADE_OP))
    tune, image, start = _of_network(folder, [*opts, "MODEL.DETNAS.PATH", path], machine)
    baseline = 0.0
    if settings.start.resnet:
        cfg = _ready(os.path.join(folder, "resnet50.yaml"), opts, machine)
        baseline = step_seconds(trainer_class(cfg)(cfg), warm_up=1, steps=3, limit=_SECONDS)
    return Rates(step, tune, images / machine.processes, image, start, baseline)


def _of_gradient(folder: str, opts: Sequence[object], machine: Machine) -> Rates:
    search = _ready(
        os.path.join(folder, "search.yaml"), [*opts, "HIT_SEARCH.ARCH_START_ITER", 0], machine
    )
    trainer = trainer_class(search)(search)
    # The architecture learns in the second half of the iterations, which takes twice the time.
    step = 0.75 * step_seconds(trainer, steps=_STEPS, limit=_SECONDS)
    found = decoded_example(search, trainer.model)
    tune, image, start = _of_network(folder, [*opts, *found], machine)
    return Rates(step, tune, 0.0, image, start)


def _of_network(
    folder: str, opts: Sequence[object], machine: Machine
) -> tuple[float, float, float]:
    """Seconds of an iteration, of a test image and of the start of a stage."""
    begin = time.perf_counter()
    cfg = _ready(os.path.join(folder, "finetune.yaml"), opts, machine)
    trainer = trainer_class(cfg)(cfg)
    start = time.perf_counter() - begin + _FILES
    tune = step_seconds(trainer, steps=_STEPS, limit=_SECONDS)
    return tune, image_seconds(cfg, trainer.model) / machine.processes, start


def _ready(file: str, opts: Sequence[object], machine: Machine) -> CfgNode:
    """A stage's config as it would begin, with one process's share of a batch."""
    cfg = load_config(file, opts)
    cfg.SOLVER.IMS_PER_BATCH = max(1, cfg.SOLVER.IMS_PER_BATCH // machine.processes)
    args = argparse.Namespace(config_file="", eval_only=False, resume=False)
    prepare(cfg, args, shown=os.devnull)
    return cfg
