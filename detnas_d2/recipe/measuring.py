"""Speeds of a recipe on this machine: a few steps of its real stages, before the first begins."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import wait as wait_for
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace

import torch
from detectron2.config import CfgNode

from detnas_d2.config.tools import load_config
from detnas_d2.data.datasets.registration import CACHE_FOLDER
from detnas_d2.engine.architectures import decoded_example
from detnas_d2.engine.defaults import LOGGERS, prepare
from detnas_d2.engine.proposals import Proposals
from detnas_d2.engine.screen import quiet_command
from detnas_d2.engine.speed import candidate_seconds, image_seconds, step_seconds
from detnas_d2.engine.training import trainer_class
from detnas_d2.pipeline.side_by_side import Place, places
from detnas_d2.recipe.choice import Recipe
from detnas_d2.recipe.facts import DataFacts, Machine
from detnas_d2.recipe.inputs import Data, Settings
from detnas_d2.recipe.rates import UNKNOWN, Rates
from detnas_d2.recipe.schedule import Plan, Schedule
from detnas_d2.recipe.writing import texts_of, write_files
from detnas_d2.search_space.space import Path
from detnas_d2.utils.screen import Line

FOLDER = "measured"
"""Below the run's: configs and log of what was measured."""

_TRIAL = Schedule(supernet=1000, population=5, generations=2, tuning=200, networks=1)
_STEPS, _SECONDS = 15, 5.0
_DRAWN = 3
_FILES = 1.0
"""Seconds of a stage for its files: checkpoints, tables."""
_MOST_WAITING = 30.0
"""Seconds until those that have come begin to measure."""


def measure(
    recipe: Recipe,
    facts: DataFacts,
    machine: Machine,
    data: Data,
    settings: Settings,
    beside: Beside | None = None,
) -> Rates:
    """The speeds, in a folder below the run's, which is emptied first.

    On several processes one measures its own share of a batch. Nothing is shown meanwhile: the
    stages themselves warn of what there is to warn of.

    Args:
        beside: where single networks are measured; None: here, alone.
    """
    line = Line()
    line.begin("measuring a few steps of every stage")
    try:
        with quiet_command(LOGGERS, line):
            return _measured(recipe, facts, machine, data, settings, beside)
    finally:
        line.clear()


def write_trial(recipe: Recipe, facts: DataFacts, data: Data, settings: Settings) -> str:
    """Writes configs of a run of some length, to be measured, into a folder below the run's, which
    is emptied first; returns it.
    """
    folder = os.path.join(settings.output, FOLDER)
    shutil.rmtree(folder, ignore_errors=True)
    write_files(folder, texts_of(Plan(recipe, facts, UNKNOWN), _TRIAL, data, settings))
    return folder


def _measured(
    recipe: Recipe,
    facts: DataFacts,
    machine: Machine,
    data: Data,
    settings: Settings,
    beside: Beside | None,
) -> Rates:
    folder = write_trial(recipe, facts, data, settings)
    opts = [
        "OUTPUT_DIR", folder,
        "DATASETS.CACHE_DIR", os.path.join(settings.output, CACHE_FOLDER),
        "SUPERNET.CHECK.PATHS", 0,
    ]  # fmt: skip
    if recipe.method == "hit":
        return _of_gradient(folder, opts, machine, beside)
    search = _ready(os.path.join(folder, "search.yaml"), opts, machine)
    trainer = trainer_class(search)(search)
    step = step_seconds(trainer, steps=_STEPS, limit=_SECONDS)
    candidate = candidate_seconds(search, trainer.model)
    images = recipe.calibration * candidate.calibration + recipe.scoring * candidate.scoring
    del trainer
    networks = [["MODEL.DETNAS.PATH", str(path)] for path in some_paths(search)]
    asked = _Asked(folder, opts, networks, machine, bool(settings.start.resnet))
    network = _of_networks(asked, beside)
    return replace(network, step=step, candidate=images / machine.processes)


def some_paths(search: CfgNode) -> list[Path]:
    """Random paths within a search's limits, whose mean is what networks take: one for as many
    multiply-adds may learn half as fast again as another.
    """
    proposals, rng = Proposals.from_config(search), random.Random("speeds")
    drawn = (proposals.random_path(rng) for _ in range(_DRAWN))
    return [path for path in drawn if path is not None] or [proposals.space.first_path()]


def _of_gradient(
    folder: str, opts: Sequence[object], machine: Machine, beside: Beside | None
) -> Rates:
    search = _ready(
        os.path.join(folder, "search.yaml"), [*opts, "HIT_SEARCH.ARCH_START_ITER", 0], machine
    )
    trainer = trainer_class(search)(search)
    # The architecture learns in the second half of the iterations, which takes twice the time.
    step = 0.75 * step_seconds(trainer, steps=_STEPS, limit=_SECONDS)
    found = decoded_example(search, trainer.model)
    del trainer
    return replace(_of_networks(_Asked(folder, opts, [found], machine), beside), step=step)


@dataclass(frozen=True)
class _Asked:
    """What is measured of single networks: with ``baseline`` also a ResNet-50.

    Attributes:
        folder: of the configs.
        opts: KEY, VALUE overrides of them.
        networks: those that make one of them each, in addition.
        meeting: folder where those that measure at the same time meet, "" for one alone.
        number, count: of this one, and how many they are.
    """

    folder: str
    opts: Sequence[object]
    networks: Sequence[Sequence[object]]
    machine: Machine
    baseline: bool = False
    meeting: str = ""
    number: int = 0
    count: int = 1


class Beside:
    """Processes that single networks are measured in, all of them at a time, as they will run.

    Args:
        rooms: of :func:`measuring_places`.
    """

    def __init__(self, rooms: Sequence[Place]) -> None:
        self._rooms = rooms
        start = time.perf_counter()
        wait_for([room.submit("the start of a process", None) for room in rooms])
        self.process = time.perf_counter() - start

    def measure(self, asked: _Asked) -> list[Rates]:
        """By every process."""
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # of what was measured in this one
        with tempfile.TemporaryDirectory(prefix="detnas_d2-") as meeting:
            count = len(self._rooms)
            jobs = [
                replace(asked, meeting=meeting, number=number, count=count)
                for number in range(count)
            ]
            found = [
                room.submit("measuring a network", job)
                for room, job in zip(self._rooms, jobs, strict=True)
            ]
            return [future.result() for future in found]


def measuring_places(jobs: int, processes: int) -> AbstractContextManager[list[Place]]:
    """Rooms for :class:`Beside`: as many as stages will run at a time."""
    return places(jobs, processes, _in_a_process)


def _of_networks(asked: _Asked, beside: Beside | None) -> Rates:
    """The slowest, as stages that run side by side are done when that one is."""
    found = [_of_network(asked)] if beside is None else beside.measure(asked)
    values = [asdict(rates) for rates in found]
    slowest = {name: max(rates[name] for rates in values) for name in values[0]}
    return replace(Rates(**slowest), process=beside.process if beside else 0.0)


def _in_a_process(asked: _Asked | None) -> Rates | None:
    return None if asked is None else _of_network(asked)


def _of_network(asked: _Asked) -> Rates:
    """Seconds of an iteration, of a test image, of the start of a stage, and of an iteration of the
    baseline; 0 for what networks do not tell.
    """
    begin = time.perf_counter()
    own = os.path.join(asked.folder, str(asked.number))  # of its log
    opts, count = [*asked.opts, "OUTPUT_DIR", own], len(asked.networks)
    tune = image = start = 0.0
    for number, network in enumerate(asked.networks):
        cfg = _ready(os.path.join(asked.folder, "finetune.yaml"), [*opts, *network], asked.machine)
        trainer = trainer_class(cfg)(cfg)
        if number == 0:
            start = time.perf_counter() - begin + _FILES
            _meet(asked)
        steps = max(1, _STEPS // count)
        tune += step_seconds(trainer, steps=steps, limit=_SECONDS / count) / count
        image += image_seconds(cfg, trainer.model) / asked.machine.processes / count
    baseline = 0.0
    if asked.baseline:
        cfg = _ready(os.path.join(asked.folder, "resnet50.yaml"), opts, asked.machine)
        baseline = step_seconds(trainer_class(cfg)(cfg), warm_up=1, steps=3, limit=_SECONDS)
    return Rates(0.0, tune, 0.0, image, start, baseline)


def _meet(asked: _Asked) -> None:
    """Waits for the others that measure, but for one that does not come."""
    if not asked.meeting:
        return
    with open(os.path.join(asked.meeting, str(asked.number)), "w", encoding="utf-8"):
        pass
    end = time.monotonic() + _MOST_WAITING
    while len(os.listdir(asked.meeting)) < asked.count and time.monotonic() < end:
        time.sleep(0.01)


def _ready(file: str, opts: Sequence[object], machine: Machine) -> CfgNode:
    """A stage's config as it would begin, with one process's share of a batch."""
    cfg = load_config(file, opts)
    cfg.SOLVER.IMS_PER_BATCH = max(1, cfg.SOLVER.IMS_PER_BATCH // machine.processes)
    args = argparse.Namespace(config_file="", eval_only=False, resume=False)
    prepare(cfg, args, shown=os.devnull)
    return cfg
