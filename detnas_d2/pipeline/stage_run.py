"""Running of one stage, in a launch of its own."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from detnas_d2.data import data_state
from detnas_d2.engine.architectures import genotype_of
from detnas_d2.engine.defaults import prepare
from detnas_d2.engine.evolution_search import search
from detnas_d2.engine.gradient_search import gradient_search, screen
from detnas_d2.engine.keeping_time import Allowance, Late, OutOfTime, watching
from detnas_d2.engine.launching import run
from detnas_d2.engine.outlook import Outlook
from detnas_d2.engine.telling import Teller, telling
from detnas_d2.engine.training import evaluate, train, train_several
from detnas_d2.pipeline import stage_time
from detnas_d2.pipeline.definition import Pipeline
from detnas_d2.pipeline.front_scores import evaluate_front
from detnas_d2.pipeline.stage_data import data_of
from detnas_d2.pipeline.stages import Stage
from detnas_d2.pipeline.state import (
    DONE_FILE,
    missing_products,
    read_done,
    read_json,
    running,
)
from detnas_d2.pipeline.status import products, stage_fingerprint
from detnas_d2.utils.io import write_json, write_text
from detnas_d2.utils.screen import Line

LATE_FILE = "late.json"
"""In a stage's folder: why it was ended. The processes of a stage tell it in no other way."""


@dataclass(frozen=True)
class Told:
    """What the process that runs a stage has to know besides its config.

    Attributes:
        title: e.g. "[2/5] search".
        shown: file of the warnings that were shown, see :func:`detnas_d2.engine.screen.quiet`; "":
            everything is, as by Detectron2.
        allowance: how long it may take; None: any time.
        alone: whether the screen's line is about it; else only its file tells how far it is.
        others: stages that are trained together with it.
    """

    title: str
    outlook: Outlook
    shown: str = ""
    allowance: Allowance | None = None
    alone: bool = True
    others: tuple[Stage, ...] = ()


def run_stage(
    pipeline: Pipeline, stage: Stage, args: argparse.Namespace, told: Told
) -> Late | None:
    """Starts or resumes a stage whose sources are done, and those that are trained with it.

    Args:
        args: of Detectron2's argument parser; says on how many processes.

    Returns:
        why it was ended, if it would have taken longer than it is allowed; None: it is done.

    Raises:
        FolderBusy: another process runs it.
    """
    folder = pipeline.folder(stage.name)
    missing = []
    with contextlib.ExitStack() as stack:
        for each in (stage, *told.others):
            mark, place = stage_fingerprint(pipeline, each), pipeline.folder(each.name)
            if args.machine_rank == 0:  # of several machines the first one tells the state
                stack.enter_context(running(place, mark))
            if read_done(place, products(pipeline, each)).get("fingerprint") != mark:
                missing.append(each)
        if not missing:
            return None  # meanwhile, by another process
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, LATE_FILE))
        more = {"pipeline": pipeline, "stage": missing[0], "others": missing[1:], "told": told}
        run(_run_stage, argparse.Namespace(**{**vars(args), **more}))
    late = read_json(folder, LATE_FILE)
    return Late(**late) if late else None


def _run_stage(args: argparse.Namespace) -> None:
    pipeline: Pipeline = args.pipeline
    stages: list[Stage] = [args.stage, *args.others]
    told: Told = args.told
    line = Line() if told.shown and comm.is_main_process() else None
    works: list[_Work] = []
    for stage in reversed(stages):  # what is logged goes to the folder of the first
        cfg, start = pipeline.config_of(stage), time.monotonic()
        mark = stage_fingerprint(pipeline, stage)
        before = stage_time.start(cfg.OUTPUT_DIR) if comm.is_main_process() else 0.0
        prepare(cfg, args, line=line, shown=told.shown)
        works.insert(0, _Work(pipeline, stage, cfg, mark, start - before))
    folder = works[0].cfg.OUTPUT_DIR
    teller = Teller(told.title, folder, told.outlook, line if told.alone else None)
    logger = logging.getLogger("detnas_d2")
    try:
        with telling(teller if comm.is_main_process() else None), watching(told.allowance):
            _run(works)
    except OutOfTime as out:
        logger.info("Stage %s is %s.", args.stage.name, out)
        if comm.is_main_process():
            write_json(os.path.join(folder, LATE_FILE), asdict(out.late))
        return
    comm.synchronize()
    for stage in stages:
        logger.info("Stage %s is done.", stage.name)


@dataclass(frozen=True)
class _Work:
    """A stage that runs: its config, fingerprint, and since when it has worked (monotonic)."""

    pipeline: Pipeline
    stage: Stage
    cfg: CfgNode
    mark: str
    start: float


def _run(works: Sequence[_Work]) -> None:
    """Runs a stage, or networks that are trained together, which share the time."""
    data = [data_of(w.cfg, w.stage.kind) if comm.is_main_process() else {} for w in works]
    if len(works) > 1:
        found = [_trained(results) for results in train_several([work.cfg for work in works])]
    else:
        found = [_results(works[0])]
    now = time.monotonic()
    for work, own, results in zip(works, data, found, strict=True):
        if comm.is_main_process():
            if work.stage.kind == "train" and results:
                own["data"] |= data_state(work.cfg.DATASETS.TEST)
            _write_done(work, results, (now - work.start) / len(works), own)


def _results(work: _Work) -> dict[str, Any]:
    """Runs a stage alone."""
    pipeline, stage, cfg = work.pipeline, work.stage, work.cfg
    folder = os.path.dirname(pipeline.file_of(stage))
    retrain: dict[str, Any] = {"config_dir": folder, "retrain_opts": pipeline.opts}
    if stage.kind == "search":
        known = [pipeline.folder(other.name) for other in pipeline.other_searches(stage)]
        return {"fitness": search(cfg, resume=True, known=known, **retrain).fitness}
    if stage.kind == "screen":
        return {"kept": screen(cfg, resume=True)}
    if stage.kind == "gradient":
        return {"genotype": str(gradient_search(cfg, resume=True, **retrain))}
    if stage.whole:
        return evaluate_front(cfg, pipeline.folder(stage.path), pipeline.space_of(stage, cfg))
    if stage.kind == "evaluate":
        return flatten_results_dict(evaluate(cfg))
    return _trained(train(cfg, resume=True))


def _trained(results: Any) -> dict[str, Any]:
    return flatten_results_dict(results or {})


def _write_done(work: _Work, results: dict[str, Any], seconds: float, data: dict[str, Any]) -> None:
    folder = work.cfg.OUTPUT_DIR
    missing = missing_products(folder, products(work.pipeline, work.stage))
    if missing:
        raise RuntimeError(f"{folder}: the stage ended without {', '.join(missing)}")
    done = {
        "fingerprint": work.mark,
        "results": results,
        "path": _architecture(work.pipeline, work.stage, work.cfg),
        "seconds": round(seconds, 1),
        "processes": comm.get_world_size(),
        **data,
    }
    stage_time.end(folder)
    write_text(os.path.join(folder, DONE_FILE), json.dumps(done, indent=1))


def _architecture(pipeline: Pipeline, stage: Stage, cfg: CfgNode) -> str:
    """Text of the path or genotype of the network that a stage trained or evaluated."""
    if stage.path and not stage.whole:
        return str(pipeline.path_of(stage, cfg))
    has_network = stage.kind in ("train", "evaluate") and not stage.whole
    return str(genotype_of(cfg)) if has_network else ""
