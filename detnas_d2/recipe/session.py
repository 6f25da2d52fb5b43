"""Runs what a record has decided, and fits what is left into the time that is left."""

from __future__ import annotations

import json
import os
from typing import Any

from detectron2.engine import default_argument_parser

from detnas_d2.pipeline.definition import read_pipeline
from detnas_d2.pipeline.run import AfterStage, run_pipeline
from detnas_d2.recipe.progress import Clock, Progress, replanned
from detnas_d2.recipe.record import Record
from detnas_d2.recipe.telling import changed_line
from detnas_d2.utils.screen import duration


def carry_on(
    record: Record, *, num_gpus: int, verbose: bool, after_stage: AfterStage | None = None
) -> dict[str, Any]:
    """Runs the stages that are missing; returns what came of them.

    Args:
        after_stage: see :func:`run_pipeline`.

    Raises:
        InputError: a stage failed; the same command goes on.
    """
    file = record.pipeline_file
    progress = Progress.of(read_pipeline(file))
    clock, current = Clock(record, progress), [record]

    def replan() -> bool:
        before = current[0].schedule
        current[0] = replanned(current[0], clock.used())
        line = changed_line(before, current[0].schedule)
        if line:
            print(line, flush=True)
        return bool(line)

    def estimates() -> dict[str, float]:
        plan, schedule = current[0].plan, current[0].schedule
        names = plan.stages(schedule.networks)
        return {name: plan.seconds_of(name, schedule) for name in names}

    if progress.took:
        replan()
    words = ["--config-file", file, "--num-gpus", str(num_gpus)]
    args = default_argument_parser().parse_args(words)
    args.verbose = verbose
    run_pipeline(args, replan=replan, estimates=estimates, after_stage=after_stage)
    return result_of(current[0], clock.used())


def result_of(record: Record, used: float) -> dict[str, Any]:
    """What a finished run has: its table, its detector, and what can be done with it."""
    output = record.settings.output
    with open(os.path.join(output, "table.json"), encoding="utf-8") as text:
        table = json.load(text)
    shown = os.path.relpath(output)
    return {
        "output": output,
        "detector": os.path.join(output, "searched"),
        "config": record.pipeline_file,
        "seconds": round(used, 1),
        "rows": table["rows"],
        "differences": table["differences"],
        "next": [
            f"{duration(used)} in all; the detector is {os.path.join(shown, 'searched')}",
            f"  detnas predict {shown} IMAGES --output pictures",
            f"  detnas export {shown} --format onnx --output exported",
            f"  {os.path.join(shown, 'report.html')} shows all of it in a browser",
        ],
    }
