"""Runs what a record has decided, and fits what is left into the time that is left."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

from detectron2.engine import default_argument_parser

from detnas_d2.engine.keeping_time import Allowance, Late
from detnas_d2.pipeline.adoption import adopt, has_other_length, is_of_this_config, start_over
from detnas_d2.pipeline.definition import read_pipeline
from detnas_d2.pipeline.missing import AfterStage
from detnas_d2.pipeline.planning import Planner
from detnas_d2.pipeline.run import run_pipeline
from detnas_d2.pipeline.state import DONE, NOT_STARTED, RUNNING, state_of
from detnas_d2.pipeline.status import products
from detnas_d2.recipe.progress import Clock, Progress
from detnas_d2.recipe.record import Record
from detnas_d2.recipe.refitting import allowance_of
from detnas_d2.recipe.replanning import cut, fitted, starting_over
from detnas_d2.recipe.telling import changed_line, late_line, smaller_family_line
from detnas_d2.utils.screen import duration


class Session(Planner):
    """Keeps a run to its time, as decided in its record.

    Configs that the user has edited, and runs without a limit, keep their numbers.
    """

    def __init__(self, record: Record) -> None:
        self.record = settled(record)
        self._begun: set[str] = set()  # stages, some of which have written nothing yet
        progress = self._progress()
        self._clock = Clock(self.record, progress)
        if progress.took:
            self._fit()

    @property
    def used(self) -> float:
        """Seconds that the run has taken."""
        return self._clock.used()

    def estimates(self) -> dict[str, float]:
        plan, schedule = self.record.plan, self.record.schedule
        return {name: plan.seconds_of(name, schedule) for name in plan.stages(schedule)}

    def allowance(self, stage: str) -> Allowance | None:
        record = self.record
        self._begun.add(stage)
        if record.seconds is None or record.is_edited():
            return None
        return allowance_of(record.plan, record.schedule, stage, record.seconds - self.used)

    def alone(self, stage: str) -> bool:
        return stage in self.record.plan.alone

    def ends_others(self, stage: str) -> bool:
        return bool(starting_over(self.record.plan, stage))

    def done(self, stage: str) -> bool:
        return self._fit()

    def _fit(self) -> bool:
        """Fits what has not begun into the time that is left; whether that has changed anything."""
        before, progress, used = self.record, self._progress(), self.used
        if before.is_edited():
            self.record = replace(before, used=used - progress.since)
            self.record.save()
            return False
        self.record = fitted(before, progress, used).written()
        lines = (
            smaller_family_line(before.plan, self.record.plan),
            changed_line(before.schedule, self.record.schedule),
        )
        told = [self._tell(line) for line in lines]
        return any(told)

    def late(self, stage: str, late: Late) -> None:
        before = self.record
        self._begun -= {stage, *starting_over(before.plan, stage)}
        if before.is_edited():  # since the stage began: it is not asked for an allowance again
            return
        self.record = settled(cut(before, stage, late, self._progress(), self.used).written())
        self._tell(late_line(self.record.plan, self.record.changes[-1]))
        self._tell(changed_line(before.schedule, self.record.schedule))

    def _progress(self) -> Progress:
        return Progress.of(read_pipeline(self.record.pipeline_file), self._begun)

    def _tell(self, line: str) -> bool:
        if line:
            print(line, flush=True)
        return bool(line)


def settled(record: Record) -> Record:
    """The record with all that it decided done: its configs written, and late stages made what they
    are to be. It may have been decided by a process that was killed.
    """
    record = record.whole()
    if record.is_edited():
        return record
    pipeline = read_pipeline(record.pipeline_file)
    for change in record.changes:
        names = [] if change.kept else starting_over(record.plan, change.stage)
        for name in names or [change.stage]:
            stage = pipeline.stage(name)
            if stage is None:  # given up
                start_over(os.path.join(record.settings.output, name))
                continue
            folder = pipeline.folder(name)
            state = state_of(folder, products(pipeline, stage))
            if state == DONE and name != change.stage and has_other_length(pipeline, stage):
                start_over(folder)
            if state in (NOT_STARTED, DONE, RUNNING):
                continue
            if change.kept:
                adopt(pipeline, stage)
            elif not is_of_this_config(pipeline, stage):
                start_over(folder)
    return record


def carry_on(
    record: Record, *, num_gpus: int, verbose: bool, after_stage: AfterStage | None = None
) -> dict[str, Any]:
    """Runs the stages that are missing; returns what came of them.

    Args:
        after_stage: see :func:`run_pipeline`.

    Raises:
        InputError: a stage failed; the same command goes on.
    """
    session = Session(record)
    words = ["--config-file", session.record.pipeline_file, "--num-gpus", str(num_gpus)]
    args = default_argument_parser().parse_args(words)
    args.verbose, args.jobs = verbose, session.record.plan.jobs
    run_pipeline(args, planner=session, after_stage=after_stage)
    return result_of(session.record, session.used)


def result_of(record: Record, used: float) -> dict[str, Any]:
    """What a finished run has: its table, its detector, and what can be done with it."""
    output = record.settings.output
    with open(os.path.join(output, "table.json"), encoding="utf-8") as text:
        table = json.load(text)
    shown = os.path.relpath(output)
    family = [os.path.join(output, name) for name in record.plan.members(record.schedule)]
    smaller = ", ".join(map(os.path.relpath, family))
    return {
        "output": output,
        "detector": os.path.join(output, "searched"),
        "family": family,
        "config": record.pipeline_file,
        "seconds": round(used, 1),
        "rows": table["rows"],
        "differences": table["differences"],
        "next": [
            f"{duration(used)} in all; the detector is {os.path.join(shown, 'searched')}",
            *([f"  smaller ones, the smallest first: {smaller}"] if family else []),
            f"  detnas predict {shown} IMAGES --output pictures",
            f"  detnas export {shown} --format onnx --output exported",
            f"  {os.path.join(shown, 'report.html')} shows all of it in a browser",
        ],
    }
