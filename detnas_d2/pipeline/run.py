"""Runs the stages of a pipeline, each in a launch of its own; see :mod:`pipeline` for its file."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import time
from contextlib import nullcontext
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from detnas_d2.command import tracebacks_in
from detnas_d2.config.tools import FREE_KEYS, differing_keys, fingerprint, load_config
from detnas_d2.data import data_state
from detnas_d2.engine.architectures import genotype_of
from detnas_d2.engine.checkpoint import FINAL, has_checkpoints
from detnas_d2.engine.defaults import prepare
from detnas_d2.engine.disk import check_disk
from detnas_d2.engine.evolution_search import search
from detnas_d2.engine.gradient_search import (
    BEST_FILE,
    GENOTYPE_FILE,
    SUB_SPACE_FILE,
    gradient_search,
    screen,
)
from detnas_d2.engine.launching import check_launch, run
from detnas_d2.engine.outlook import Outlook, set_outlook, work_of
from detnas_d2.engine.training import train
from detnas_d2.pipeline import stage_time
from detnas_d2.pipeline import state as pipeline_state
from detnas_d2.pipeline.checks import check_stages
from detnas_d2.pipeline.definition import Pipeline, PipelineError, Stage, read_pipeline
from detnas_d2.pipeline.report import format_table, table_rows
from detnas_d2.pipeline.stage_data import check_data, data_of
from detnas_d2.pipeline.state import (
    DONE,
    DONE_FILE,
    FAILED,
    OUTDATED,
    STOPPED,
    missing_products,
    read_done,
    read_json,
)
from detnas_d2.search.history import HEADER_FILE, RECORDS_FILE
from detnas_d2.utils.io import write_text
from detnas_d2.utils.locks import LOCK_FILE

_LISTED = 5
_WEIGHTS = f"{FINAL}.pth"
PRODUCTS = {
    "train": (_WEIGHTS,),
    "search": (HEADER_FILE, RECORDS_FILE, BEST_FILE),
    "screen": (_WEIGHTS, SUB_SPACE_FILE),
    "gradient": (_WEIGHTS, GENOTYPE_FILE, BEST_FILE),
}
"""Kind of a stage -> the files without which it is not done."""


def pipeline_main() -> None:
    """Runs ``run_pipeline.py`` with the arguments of the command line."""
    parser = default_argument_parser()
    parser.add_argument("--dry-run", action="store_true", help="start nothing; stages and disk")
    run_pipeline(parser.parse_args())


def run_pipeline(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Runs what is not finished of ``args.config_file``; returns and prints the table's rows.

    Running it again resumes the stage that was interrupted and skips those that are done. With
    ``args.dry_run`` it only prints the stages' states and the disk that they need.
    """
    pipeline = read_pipeline(args.config_file, tuple(args.opts))
    dry_run = getattr(args, "dry_run", False)
    with tracebacks_in(lambda: pipeline.output_dir):
        check_launch(args)
        if args.machine_rank == 0:
            states = {stage.name: stage_state(pipeline, stage) for stage in pipeline.stages}
            done = {name for name, state in states.items() if state == DONE or dry_run}
            processes = args.num_gpus * args.num_machines
            needs = check_stages(pipeline, done, processes=processes)
            waiting = {pipeline.folder(n): needs[n] for n, state in states.items() if state != DONE}
            if dry_run:
                print("\n".join(f"{name}: {state}" for name, state in states.items()))
            check_data(pipeline, {name for name, state in states.items() if state == DONE})
            print(check_disk(waiting, pipeline.output_dir), flush=True)
            if dry_run:
                return {}
            make_folder(pipeline)
    start = time.monotonic()
    for number, stage in enumerate(pipeline.stages, start=1):
        title = f"[{number}/{len(pipeline.stages)}] {stage.name}"
        state = stage_state(pipeline, stage)
        if state == OUTDATED:
            raise outdated(pipeline, stage)
        if state == DONE:
            print(f"{title}: done before", flush=True)
            continue
        print(f"{title}: {stage.kind} {stage.config}", flush=True)
        run_stage(pipeline, stage, args)
        elapsed = time.monotonic() - start
        print(f"{title}: finished, {elapsed / 60:.1f} min since the start", flush=True)
    rows = table_rows(pipeline)
    if rows:
        text = format_table(rows)
        print(text)
        write_text(os.path.join(pipeline.output_dir, "table.md"), text + "\n")
        write_text(os.path.join(pipeline.output_dir, "table.json"), json.dumps(rows, indent=1))
    return rows


def make_folder(pipeline: Pipeline) -> None:
    """Makes OUTPUT_DIR; a PipelineError names what is in the way."""
    try:
        os.makedirs(pipeline.output_dir, exist_ok=True)
    except OSError as error:
        raise PipelineError(
            f"{pipeline.file}: OUTPUT_DIR {pipeline.output_dir!r}: {error.strerror}; choose another"
        ) from error


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
    with pipeline_state.running(folder, mark) if args.machine_rank == 0 else nullcontext():
        if read_done(folder, PRODUCTS[stage.kind]).get("fingerprint") == mark:
            return  # meanwhile, by another process
        run(_run_stage, stage_args)


def outlook_of(pipeline: Pipeline, stage: Stage) -> Outlook:
    """Work that is left after a stage, and the speed of the finished stages."""
    seconds: dict[str, float] = {}
    units: dict[str, float] = {}
    later = []
    for other in pipeline.stages:
        cfg = load_config(pipeline.file_of(other), [*other.opts, *pipeline.opts])
        work = work_of(cfg, other.kind)
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


def stage_state(pipeline: Pipeline, stage: Stage) -> str:
    """A state of :mod:`pipeline_state`."""
    folder = pipeline.folder(stage.name)
    state = pipeline_state.state_of(folder, PRODUCTS[stage.kind])
    if state == DONE or (state in (STOPPED, FAILED) and has_checkpoints(folder)):
        mark = read_json(folder, DONE_FILE if state == DONE else LOCK_FILE).get("fingerprint")
        if mark is not None and mark != _fingerprint_now(pipeline, stage):
            return OUTDATED
    return state


def _fingerprint_now(pipeline: Pipeline, stage: Stage) -> str:
    try:
        return stage_fingerprint(pipeline, stage)
    except (OSError, PipelineError):  # what a stage before it found is gone
        return ""


def outdated(pipeline: Pipeline, stage: Stage) -> PipelineError:
    """The error that explains the state OUTDATED."""
    keys = changes(pipeline, stage)
    what = f"another config ({', '.join(keys)})" if keys else "another config of a stage before it"
    return PipelineError(
        f"stage {stage.name!r} was run with {what}; use another OUTPUT_DIR, or delete "
        f"{pipeline.folder(stage.name)} to run it again"
    )


def changes(pipeline: Pipeline, stage: Stage) -> list[str]:
    """Texts "KEY: then -> now", the first of them, of what a stage was begun with and has now."""
    try:
        then = load_config(os.path.join(pipeline.folder(stage.name), "config.yaml"))
        keys = differing_keys(then, pipeline.config_of(stage), _ignored(pipeline, stage))
    except (AssertionError, KeyError, OSError, ValueError):  # of another version, or incomplete
        return []
    return keys[:_LISTED] + (["..."] if len(keys) > _LISTED else [])


def stage_fingerprint(pipeline: Pipeline, stage: Stage) -> str:
    """Of a stage's config and those of the stages that it starts from."""
    own = fingerprint(pipeline.config_of(stage), _ignored(pipeline, stage))
    sources = [stage_fingerprint(pipeline, source) for source in pipeline.sources_of(stage)]
    return hashlib.sha256("/".join([own, *sources]).encode()).hexdigest()


def _ignored(pipeline: Pipeline, stage: Stage) -> list[str]:
    """Keys and nodes that do not alter what a stage does."""
    ignored = list(FREE_KEYS)
    if pipeline.stage(stage.weights) is not None:
        ignored.append("MODEL.WEIGHTS")
    if stage.kind == "train":  # another search of the same supernet does not train it again
        ignored.append("SEARCH")
    return ignored


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
    else:
        results = flatten_results_dict(train(cfg, resume=True) or {})
        if results and comm.is_main_process():
            data["data"] |= data_state(cfg.DATASETS.TEST)
    if comm.is_main_process():
        missing = missing_products(cfg.OUTPUT_DIR, PRODUCTS[stage.kind])
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
    """Text of the path or genotype that a stage trained."""
    if stage.path:
        return cfg.MODEL.DETNAS.PATH
    return str(genotype_of(cfg)) if stage.kind == "train" else ""
