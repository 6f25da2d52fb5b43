"""Running of one stage, in a launch of its own."""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from contextlib import nullcontext
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from detnas_d2.data import data_state
from detnas_d2.engine.architectures import genotype_of
from detnas_d2.engine.defaults import prepare
from detnas_d2.engine.evolution_search import search
from detnas_d2.engine.gradient_search import gradient_search, screen
from detnas_d2.engine.launching import run
from detnas_d2.engine.outlook import Outlook, set_outlook, work_of
from detnas_d2.engine.training import evaluate, train
from detnas_d2.pipeline import stage_time
from detnas_d2.pipeline.definition import Pipeline
from detnas_d2.pipeline.stage_data import data_of
from detnas_d2.pipeline.stages import Stage
from detnas_d2.pipeline.state import (
    DONE,
    DONE_FILE,
    missing_products,
    read_done,
    read_json,
    running,
)
from detnas_d2.pipeline.status import products, stage_fingerprint, stage_state
from detnas_d2.utils.io import write_text


def run_stage(pipeline: Pipeline, stage: Stage, args: argparse.Namespace) -> None:
    """Starts or resumes a stage whose sources are done.

    Args:
        args: of Detectron2's argument parser; says on how many processes.

    Raises:
        FolderBusy: another process runs it.
    """
    outlook = outlook_of(pipeline, stage) if args.machine_rank == 0 else None
    stage_args = argparse.Namespace(
        **{**vars(args), "pipeline": pipeline, "stage": stage, "outlook": outlook}
    )
    mark = stage_fingerprint(pipeline, stage)
    folder = pipeline.folder(stage.name)
    # Of several machines the first one tells the state.
    with running(folder, mark) if args.machine_rank == 0 else nullcontext():
        if read_done(folder, products(pipeline, stage)).get("fingerprint") == mark:
            return  # meanwhile, by another process
        run(_run_stage, stage_args)


def outlook_of(pipeline: Pipeline, stage: Stage) -> Outlook:
    """Work that is left after a stage, and the speed of the finished stages."""
    seconds: dict[str, float] = {}
    units: dict[str, float] = {}
    later = []
    for other in pipeline.stages:
        work = work_of(pipeline.begin_of(other), other.kind)
        if other.name == stage.name:
            own = work
        elif stage_state(pipeline, other) != DONE:
            later.append((other.kind, work))
        else:
            took = read_json(pipeline.folder(other.name), DONE_FILE).get("seconds", 0.0)
            seconds[other.kind] = seconds.get(other.kind, 0.0) + took
            units[other.kind] = units.get(other.kind, 0.0) + work
    rates = {kind: seconds[kind] / units[kind] for kind in units if seconds[kind] and units[kind]}
    return Outlook(own, tuple(later), rates)


def _run_stage(args: argparse.Namespace) -> None:
    pipeline, stage = args.pipeline, args.stage
    mark = stage_fingerprint(pipeline, stage)
    cfg = pipeline.config_of(stage)
    start = time.monotonic()
    before = stage_time.start(cfg.OUTPUT_DIR) if comm.is_main_process() else 0.0
    prepare(cfg, args)
    data = data_of(cfg, stage.kind) if comm.is_main_process() else {}
    set_outlook(args.outlook)
    folder = os.path.dirname(pipeline.file_of(stage))
    retrain = {"config_dir": folder, "retrain_opts": pipeline.opts}
    if stage.kind == "search":
        best = search(cfg, resume=True, **retrain)
        results: dict[str, Any] = {"fitness": best.fitness}
    elif stage.kind == "screen":
        results = {"kept": screen(cfg, resume=True)}
    elif stage.kind == "gradient":
        results = {"genotype": str(gradient_search(cfg, resume=True, **retrain))}
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
            "path": _architecture(cfg, stage),
            "seconds": round(time.monotonic() - start + before, 1),
            "processes": comm.get_world_size(),
            **data,
        }
        write_text(os.path.join(cfg.OUTPUT_DIR, DONE_FILE), json.dumps(done, indent=1))
    comm.synchronize()
    logging.getLogger("detnas_d2").info("Stage %s is done.", stage.name)


def _architecture(cfg: CfgNode, stage: Stage) -> str:
    """Text of the path or genotype of the network that a stage trained or evaluated."""
    if stage.path:
        return cfg.MODEL.DETNAS.PATH
    return str(genotype_of(cfg)) if stage.kind in ("train", "evaluate") else ""
