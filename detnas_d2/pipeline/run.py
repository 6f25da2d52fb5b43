"""Runs what a pipeline, or a table over several, is missing, and prints its tables."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter

from detnas_d2.command import tracebacks_in
from detnas_d2.engine import default_argument_parser
from detnas_d2.engine.checks.disk import Need, check_disk
from detnas_d2.engine.defaults import LOGGERS
from detnas_d2.engine.launching import check_launch
from detnas_d2.engine.screen import quiet_command
from detnas_d2.engine.telling import PROGRESS_FILE, status_text
from detnas_d2.pipeline.checks import check_stages
from detnas_d2.pipeline.definition import Pipeline
from detnas_d2.pipeline.differences import format_differences
from detnas_d2.pipeline.experiment import Experiment, Run, read_experiment
from detnas_d2.pipeline.family import titled_families
from detnas_d2.pipeline.fronts import FRONTS_FILE, compare_fronts
from detnas_d2.pipeline.missing import AfterStage, Ends, Missing, write_manifests
from detnas_d2.pipeline.planning import Planner
from detnas_d2.pipeline.report import format_table, table_differences, table_rows
from detnas_d2.pipeline.shown import Screen
from detnas_d2.pipeline.side_by_side import jobs_of
from detnas_d2.pipeline.stage_data import check_data
from detnas_d2.pipeline.stages import PipelineError
from detnas_d2.pipeline.state import (
    DONE,
    FAILED,
    FAILED_FILE,
    OUTDATED,
    RUNNING,
    read_json,
)
from detnas_d2.pipeline.status import stage_state
from detnas_d2.pipeline.supernets import supernet_lines
from detnas_d2.pipeline.table_plots import draw_tables
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.figures import check_figure
from detnas_d2.utils.io import write_text
from detnas_d2.utils.locks import holder
from detnas_d2.utils.screen import Line


def pipeline_main(after_stage: AfterStage | None = None) -> int:
    """``run_pipeline.py``; its exit status, 0 when every stage is done."""
    parser = default_argument_parser()
    help_ = "start nothing; print the stages, the disk that they need, and the tables"
    parser.add_argument("--dry-run", action="store_true", help=help_)
    help_ = "show all that is logged, as Detectron2 does, not a line for each stage and warnings"
    parser.add_argument("--verbose", action="store_true", help=help_)
    help_ = (
        "stages that run side by side, if none needs another: each in a process of its own, with "
        "--num-gpus GPUs, or an equal share of the cores; auto: as many as the machine serves"
    )
    parser.add_argument("--jobs", default="1", metavar="N", help=help_)
    help_ = "write TABLE of all SEEDS, and what its differences show, to a JSON file of yours"
    parser.add_argument("--record", default="", metavar="FILE", help=help_)
    help_ = "draw the tables that say how (PLOT); with --dry-run of what is there, checking nothing"
    parser.add_argument("--plot", default="", metavar="FILE", help=help_)
    args = parser.parse_args()
    return 0 if run_pipeline(args, after_stage=after_stage) or args.dry_run else 1


def run_pipeline(
    args: argparse.Namespace,
    *,
    planner: Planner | None = None,
    after_stage: AfterStage | None = None,
) -> bool:
    """Starts what is missing of ``args.config_file`` and resumes what stopped, stage by stage.

    A line on stderr tells how far the stage is, and what is left of all. Of what else is logged,
    which is in the stages' ``log.txt``, warnings are shown, each once; with ``args.verbose`` all of
    it, as by Detectron2, instead of that line.

    A pipeline ends with the first stage that fails. One with TABLES, or several, go on: what fails
    holds up only what starts from it, and what another process runs is left to it. With
    ``args.dry_run`` it only prints the stages' states, the disk that they need, and the tables.

    Args:
        planner: says how long stages may take, and plans those to come anew, while all of it runs;
            the file is read again then.
        after_stage: see :data:`AfterStage`; called on the first machine, and once for a folder
            where no stage was left to run.

    Returns:
        whether every stage is done.

    Raises:
        InputError: a mistake in a file or a stage; or several pipelines on several machines, which
            could not agree on what to start.
    """
    planner = planner or Planner()
    if getattr(args, "verbose", False):
        return _run_pipeline(args, Screen(planner), after_stage)
    line = Line()
    with quiet_command(LOGGERS, line) as shown:
        return _run_pipeline(args, Screen(planner, line, shown), after_stage)


def _run_pipeline(
    args: argparse.Namespace,
    screen: Screen,
    after_stage: AfterStage | None,
) -> bool:
    experiment = read_experiment(args.config_file, tuple(args.opts))
    dry_run, record = getattr(args, "dry_run", False), getattr(args, "record", "")
    if record and not any(pipeline.table for pipeline in experiment.runs_of_stages):
        raise InputError(f"--record {record}: {args.config_file} has no TABLE to be recorded")
    plot = getattr(args, "plot", "")
    if plot:
        check_figure(plot)
        if not any(table.plot for table in experiment.tables):
            raise InputError(f"--plot {plot}: {args.config_file} has no table with a PLOT")
    if experiment.several and args.num_machines > 1:
        raise InputError(
            "--num-machines: several pipelines run on one machine; start each of them with "
            "OUTPUT_DIR <that of the table>/seed<SEED>/<name>, or one of SEEDS after the other, to "
            "use several"
        )
    with tracebacks_in(lambda: experiment.output_dir):
        check_launch(args)
        jobs = jobs_of(args)
        if args.machine_rank == 0 and not (dry_run and plot):
            _check(experiment, args.num_gpus * args.num_machines, dry_run=dry_run)
        if args.machine_rank == 0 and not dry_run:
            _make_folder(experiment)
    # Machines cannot agree on what a failure leaves to do.
    goes_on = bool(experiment.tables or experiment.several) and args.num_machines == 1
    if not dry_run:
        if args.machine_rank == 0:
            write_manifests(experiment, args.num_gpus * args.num_machines)
        ends = Ends(experiment, after_stage if args.machine_rank == 0 else None)
        experiment = Missing(experiment, args, jobs, goes_on, screen, ends).run()
        ends.rest()
    if dry_run or goes_on:
        print(list_runs(experiment))
    _print_tables(experiment, write=not dry_run, record=record)
    if plot and args.machine_rank == 0:
        draw_tables(experiment.tables, plot)
    return all(stage_state(run.pipeline, run.stage) == DONE for run in experiment.runs())


def _check(experiment: Experiment, processes: int, *, dry_run: bool) -> None:
    """Looks at every stage, at the data of those that are done, and at the disk."""
    needs: dict[str, dict[str, Need]] = {}
    waiting: dict[str, Need] = {}
    for pipelines in experiment.pipelines.values():
        for name, pipeline in pipelines.items():
            states = {stage.name: stage_state(pipeline, stage) for stage in pipeline.stages}
            done = {name for name, state in states.items() if state == DONE}
            if name not in needs:  # the same for all seeds
                # Of different pipelines data is checked where a stage begins: one that is missing
                # holds up only its own runs.
                unseen = done if experiment.runs_of_stages and not dry_run else set(states)
                needs[name] = check_stages(pipeline, unseen, processes=processes)
            check_data(pipeline, done)
            missing = set(states) - done
            waiting |= {pipeline.folder(stage): needs[name][stage] for stage in missing}
    print(check_disk(waiting, experiment.output_dir), flush=True)


def _make_folder(experiment: Experiment) -> None:
    try:
        os.makedirs(experiment.output_dir, exist_ok=True)
    except OSError as error:
        raise PipelineError(
            f"{experiment.file}: OUTPUT_DIR {experiment.output_dir!r}: {error.strerror}; choose "
            "another"
        ) from error


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
        status = read_json(run.folder, PROGRESS_FILE)
        return f" ({holder(run.folder)})" + (
            f": {status_text(status, last=True)}" if status else ""
        )
    if state == OUTDATED:
        return f": was run with another config, delete {run.folder} to run it again"
    return ""


def _has_rows(pipeline: Pipeline) -> bool:
    """Whether the stages of TABLE are done; False without TABLE."""
    stages = [stage for row in pipeline.table for stage in pipeline.stages_of(row)]
    return bool(stages) and all(stage_state(pipeline, stage) == DONE for stage in stages)


def _print_tables(experiment: Experiment, *, write: bool, record: str) -> None:
    """Prints TABLE (of the seeds whose stages are done), TABLES and a line about each supernet;
    writes ``table.md``, ``table.json``, ``family.json`` where a search found a front,
    ``fronts.json`` where several did and, once all seeds are done, the file ``record``.
    """
    texts = [f"{table.title}\n\n{table.text()}" for table in experiment.tables]
    runs = [pipeline for pipeline in experiment.runs_of_stages if _has_rows(pipeline)]
    if write and runs:
        rows = table_rows(runs)
        found = table_differences(runs, rows)
        missing = len(experiment.runs_of_stages) - len(runs)
        texts.insert(0, format_table(rows) + format_differences(found, missing))
        content = {"rows": rows, "differences": [difference.as_dict() for difference in found]}
        file = os.path.join(experiment.output_dir, "table.json")
        write_text(file, json.dumps(content, indent=1))
        if record and not missing:
            about = {
                "pipeline": os.path.relpath(experiment.file),
                "overrides": experiment.opts,
                "seeds": [pipeline.seed for pipeline in runs],
                "report": [str(difference) for difference in found],
            }
            write_text(record, json.dumps({**about, **content}, indent=1) + "\n")
    found_families = titled_families(runs)
    texts += [f"{title}\n\n{family.text()}" for title, family in found_families.items()]
    if write and found_families:
        content = {title: family.as_dict() for title, family in found_families.items()}
        file = os.path.join(experiment.output_dir, "family.json")
        write_text(file, json.dumps(content, indent=1))
    fronts = compare_fronts(experiment.runs_of_stages)
    if fronts is not None:
        texts.append(f"Fronts of {' and '.join(fronts.searches)}\n\n{fronts.text()}")
        if write:
            file = os.path.join(experiment.output_dir, FRONTS_FILE)
            write_text(file, json.dumps(fronts.as_dict(), indent=1))
    if lines := supernet_lines(experiment):
        texts.append("\n".join(lines))
    if texts:
        text = "\n\n".join(texts)
        print(f"\n{text}")
        if write:
            write_text(os.path.join(experiment.output_dir, "table.md"), text + "\n")
