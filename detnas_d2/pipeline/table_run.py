"""Runs what a table is missing, tells how far it is, and prints it; see :mod:`tables`."""

from __future__ import annotations

import argparse
import logging
import os
from collections import Counter

from detectron2.engine import default_argument_parser

from detnas_d2.analysis.detector_cost import DETECTOR_COSTS
from detnas_d2.engine.disk import Need, check_disk
from detnas_d2.pipeline.checks import check_stages
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
from detnas_d2.pipeline.tables import Cell, Reference, Run, Table, read_table
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
    table = read_table(args.config_file, tuple(args.opts))
    if not args.dry_run:
        print(check_disk(_needs(table), table.output_dir), flush=True)
        _run_missing(table, args)
    print(list_runs(table))
    text = format_table(table)
    print(f"\n{table.title}\n\n{text}")
    if not args.dry_run:
        write_text(os.path.join(table.output_dir, "table.md"), text + "\n")
    return all(stage_state(run.pipeline, run.stage) == DONE for run in table.runs())


def _needs(table: Table) -> dict[str, Need]:
    """Checks every pipeline; folder of each run that is not done -> the disk that it needs."""
    needs = {
        # Data is checked where a stage begins: one that is missing holds up only its own runs.
        name: check_stages(pipeline, {stage.name for stage in pipeline.stages})
        for name, pipeline in next(iter(table.pipelines.values())).items()
    }
    return {
        pipeline.folder(stage.name): needs[name][stage.name]
        for pipelines in table.pipelines.values()
        for name, pipeline in pipelines.items()
        for stage in pipeline.stages
        if stage_state(pipeline, stage) != DONE
    }


def _run_missing(table: Table, args: argparse.Namespace) -> None:
    runs, failed, progress = table.runs(), set(), True
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


def list_runs(table: Table) -> str:
    """One line for each run with its state, and how many there are of each state."""
    runs = table.runs()
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


def format_table(table: Table) -> str:
    """The table in Markdown, the numbers of others beside the measured ones.

    ``±`` is the standard deviation over the networks, whose number follows; "2 of 3" tells that
    some are missing. A cell without measurement is empty, or "not built".
    """
    cells = [
        [table.cell(row, column, number) for number, column in enumerate(table.columns)]
        for row in table.rows
    ]
    head: list[str] = ["network"]
    lines = [[row.name] for row in table.rows]
    for number, column in enumerate(table.columns):
        entries = [row[number] for row in cells]
        found = [
            name
            for name in table.references
            if any(cell.references.get(name) is not None for cell in entries)
        ]
        for name in found:
            head.append(f"{column.name}, {name.lower()}")
            for line, cell in zip(lines, entries, strict=True):
                line.append(_printed(cell.references.get(name)))
        if not column.metric:
            continue
        how = "counted" if column.metric in DETECTOR_COSTS else "measured"
        head.append(f"{column.name}, {how}" if found else column.name)
        for line, row, cell in zip(lines, table.rows, entries, strict=True):
            line.append(format_cell(cell) if row.row else "not built")
    body = [head, ["---"] * len(head), *lines]
    text = "\n".join("| " + " | ".join(line) + " |" for line in body)
    sources = [f"{name.lower()}: {source}" for name, source in table.references.items()]
    return "\n\n".join([text, *sources])


def _printed(number: Reference) -> str:
    """As the reference prints it; trailing zeros are lost unless the file has a text."""
    return number if isinstance(number, str) else "" if number is None else f"{number:.10g}"


def format_cell(cell: Cell) -> str:
    """Mean, spread and number of networks of what was measured; "" for nothing."""
    if cell.mean is None:
        return ""
    found = len(cell.values)
    count = str(found) if found == cell.networks else f"{found} of {cell.networks}"
    spread = f" ± {cell.deviation:.2f}" if found > 1 else ""
    whole = all(isinstance(value, int) for value in cell.values) and not cell.deviation
    mean = f"{cell.mean:.0f}" if whole else f"{cell.mean:.2f}{spread}"
    return mean + (f" ({count})" if cell.networks > 1 else "")
