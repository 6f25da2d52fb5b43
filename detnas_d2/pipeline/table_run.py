"""Runs what a table is missing, tells how far it is, and prints it; see :mod:`experiment`."""

from __future__ import annotations

import argparse
import logging
import os
from collections import Counter

from detectron2.engine import default_argument_parser

from detnas_d2.engine.disk import Need, check_disk
from detnas_d2.pipeline.checks import check_stages
from detnas_d2.pipeline.experiment import Experiment, Run, read_experiment
from detnas_d2.pipeline.run import run_stage, stage_state
from detnas_d2.pipeline.state import (
    DONE,
    FAILED,
    FAILED_FILE,
    NOT_STARTED,
    OUTDATED,
    RUNNING,
    STOPPED,
    read_json,
)
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_text
from detnas_d2.utils.locks import FolderBusy, holder

logger = logging.getLogger("detnas_d2.table")


def table_main() -> int:
    """``run_table.py``; its exit status, 0 when every run is done."""
    parser = default_argument_parser()
    parser.add_argument("--dry-run", action="store_true", help="start nothing, list and print")
    return 0 if run_table(parser.parse_args()) else 1


def run_table(args: argparse.Namespace) -> bool:
    """Starts what is missing of ``args.config_file`` and resumes what stopped, one run at a time.

    A run that fails holds up only those that start from it. What another process runs is left to
    it. Prints the state of every run at the end and the table; with ``args.dry_run``, only that.

    Returns:
        whether every run is done.

    Raises:
        ValueError: several machines, which could not agree on what to start.
    """
    if args.num_machines > 1:
        raise InputError(
            "--num-machines: a table runs on one machine; start its pipelines with run_pipeline.py "
            "and OUTPUT_DIR <that of the table>/seed<SEED>/<name> to use several"
        )
    experiment = read_experiment(args.config_file, tuple(args.opts))
    if not args.dry_run:
        print(check_disk(_needs(experiment), experiment.output_dir), flush=True)
        _run_missing(experiment, args)
    print(list_runs(experiment))
    texts = [f"{table.title}\n\n{table.text()}" for table in experiment.tables]
    print("", *texts, sep="\n\n")
    if not args.dry_run:
        write_text(os.path.join(experiment.output_dir, "table.md"), "\n\n".join(texts) + "\n")
    return all(stage_state(run.pipeline, run.stage) == DONE for run in experiment.runs())


def _needs(experiment: Experiment) -> dict[str, Need]:
    """Checks every pipeline; folder of each run that is not done -> the disk that it needs."""
    needs = {
        # Data is checked where a stage begins: one that is missing holds up only its own runs.
        name: check_stages(pipeline, {stage.name for stage in pipeline.stages})
        for name, pipeline in next(iter(experiment.pipelines.values())).items()
    }
    return {
        pipeline.folder(stage.name): needs[name][stage.name]
        for pipelines in experiment.pipelines.values()
        for name, pipeline in pipelines.items()
        for stage in pipeline.stages
        if stage_state(pipeline, stage) != DONE
    }


def _run_missing(experiment: Experiment, args: argparse.Namespace) -> None:
    runs, failed, progress = experiment.runs(), set(), True
    while progress:  # again, as what other processes ran may be done by now
        progress = False
        for number, run in enumerate(runs, start=1):
            if run.folder in failed or not _is_ready(run):
                continue
            print(f"[{number}/{len(runs)}] {run.name}", flush=True)
            try:
                run_stage(run.pipeline, run.stage, args)
                progress = stage_state(run.pipeline, run.stage) == DONE or progress
            except FolderBusy as error:
                print(error, flush=True)
            except Exception:
                logger.exception("%s failed", run.name)
                failed.add(run.folder)


def _is_ready(run: Run) -> bool:
    """Whether it is to be started or resumed, and what it starts from is done."""
    if stage_state(run.pipeline, run.stage) not in (NOT_STARTED, STOPPED, FAILED):
        return False
    sources = run.pipeline.sources_of(run.stage)
    return all(stage_state(run.pipeline, source) == DONE for source in sources)


def list_runs(experiment: Experiment) -> str:
    """One line for each run with its state, and how many there are of each state."""
    runs = experiment.runs()
    states = [stage_state(run.pipeline, run.stage) for run in runs]
    width = max(len(run.name) for run in runs)
    lines = [
        f"{run.name:{width}}  {state}{_explanation(run, state)}"
        for run, state in zip(runs, states, strict=True)
    ]
    counts = ", ".join(f"{count} {state}" for state, count in Counter(states).items())
    return "\n".join([*lines, f"{len(runs)} runs: {counts}"])


def _explanation(run: Run, state: str) -> str:
    if state == FAILED:
        return f": {read_json(run.folder, FAILED_FILE).get('error', '')}"
    if state == RUNNING:
        return f" ({holder(run.folder)})"
    if state == OUTDATED:
        return f": was run with another config, delete {run.folder} to run it again"
    return ""
