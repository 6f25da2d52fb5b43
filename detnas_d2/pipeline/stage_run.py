"""Running of one stage, in a launch of its own."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import time
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
from detnas_d2.engine.training import evaluate, train
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
    """

    title: str
    outlook: Outlook
    shown: str = ""
    allowance: Allowance | None = None
    alone: bool = True


def run_stage(
    pipeline: Pipeline, stage: Stage, args: argparse.Namespace, told: Told
) -> Late | None:
    """Starts or resumes a stage whose sources are done.

    Args:
        args: of Detectron2's argument parser; says on how many processes.

    Returns:
        why it was ended, if it would have taken longer than it is allowed; None: it is done.

    Raises:
        FolderBusy: another process runs it.
    """
    stage_args = argparse.Namespace(
        **{**vars(args), "pipeline": pipeline, "stage": stage, "told": told}
    )
    mark = stage_fingerprint(pipeline, stage)
    folder = pipeline.folder(stage.name)
    # Of several machines the first one tells the state.
    with running(folder, mark) if args.machine_rank == 0 else contextlib.nullcontext():
        if read_done(folder, products(pipeline, stage)).get("fingerprint") == mark:
            return None  # meanwhile, by another process
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, LATE_FILE))
        run(_run_stage, stage_args)
    late = read_json(folder, LATE_FILE)
    return Late(**late) if late else None


def _run_stage(args: argparse.Namespace) -> None:
    pipeline, stage = args.pipeline, args.stage
    mark = stage_fingerprint(pipeline, stage)
    cfg = pipeline.config_of(stage)
    start = time.monotonic()
    before = stage_time.start(cfg.OUTPUT_DIR) if comm.is_main_process() else 0.0
    told: Told = args.told
    line = Line() if told.shown and comm.is_main_process() else None
    prepare(cfg, args, line=line, shown=told.shown)
    teller = Teller(told.title, cfg.OUTPUT_DIR, told.outlook, line if told.alone else None)
    logger = logging.getLogger("detnas_d2")
    try:
        with telling(teller if comm.is_main_process() else None), watching(told.allowance):
            _run(pipeline, stage, cfg, mark, start - before)
    except OutOfTime as out:
        logger.info("Stage %s is %s.", stage.name, out)
        if comm.is_main_process():
            write_json(os.path.join(cfg.OUTPUT_DIR, LATE_FILE), asdict(out.late))
        return
    comm.synchronize()
    logger.info("Stage %s is done.", stage.name)


def _run(pipeline: Pipeline, stage: Stage, cfg: CfgNode, mark: str, start: float) -> None:
    """Runs a stage of the config ``cfg``, which has worked since ``start`` (monotonic)."""
    data = data_of(cfg, stage.kind) if comm.is_main_process() else {}
    folder = os.path.dirname(pipeline.file_of(stage))
    retrain: dict[str, Any] = {"config_dir": folder, "retrain_opts": pipeline.opts}
    if stage.kind == "search":
        known = [pipeline.folder(other.name) for other in pipeline.other_searches(stage)]
        best = search(cfg, resume=True, known=known, **retrain)
        results: dict[str, Any] = {"fitness": best.fitness}
    elif stage.kind == "screen":
        results = {"kept": screen(cfg, resume=True)}
    elif stage.kind == "gradient":
        results = {"genotype": str(gradient_search(cfg, resume=True, **retrain))}
    elif stage.whole:
        results = evaluate_front(cfg, pipeline.folder(stage.path))
    elif stage.kind == "evaluate":
        results = flatten_results_dict(evaluate(cfg))
    else:
        results = flatten_results_dict(train(cfg, resume=True) or {})
        if results and comm.is_main_process():
            data["data"] |= data_state(cfg.DATASETS.TEST)
    if comm.is_main_process():
        missing = missing_products(cfg.OUTPUT_DIR, products(pipeline, stage))
        if missing:
            raise RuntimeError(f"{cfg.OUTPUT_DIR}: the stage ended without {', '.join(missing)}")
        done = {
            "fingerprint": mark,
            "results": results,
            "path": _architecture(pipeline, stage, cfg),
            "seconds": round(time.monotonic() - start, 1),
            "processes": comm.get_world_size(),
            **data,
        }
        write_text(os.path.join(cfg.OUTPUT_DIR, DONE_FILE), json.dumps(done, indent=1))


def _architecture(pipeline: Pipeline, stage: Stage, cfg: CfgNode) -> str:
    """Text of the path or genotype of the network that a stage trained or evaluated."""
    if stage.path and not stage.whole:
        return str(pipeline.path_of(stage, cfg))
    has_network = stage.kind in ("train", "evaluate") and not stage.whole
    return str(genotype_of(cfg)) if has_network else ""
