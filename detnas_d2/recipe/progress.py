"""A run's time: what its stages took, and the lengths of those to come."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from detnas_d2.pipeline import stage_time
from detnas_d2.pipeline.definition import Pipeline, read_pipeline
from detnas_d2.pipeline.state import DONE, DONE_FILE, NOT_STARTED, read_json, state_of
from detnas_d2.pipeline.status import products
from detnas_d2.recipe.record import Record
from detnas_d2.recipe.schedule import rest


@dataclass(frozen=True)
class Progress:
    """Stages of a run.

    Attributes:
        took: stage -> seconds, of those that are done, in order.
        begun: those that have begun, done or not.
        working: seconds that those begun and not done have worked.
    """

    took: dict[str, float]
    begun: frozenset[str]
    working: float

    @classmethod
    def of(cls, pipeline: Pipeline) -> Progress:
        took, begun, working = {}, set(), 0.0
        for stage in pipeline.stages:
            folder = pipeline.folder(stage.name)
            state = state_of(folder, products(pipeline, stage))
            if state == NOT_STARTED:
                continue
            begun.add(stage.name)
            if state == DONE:
                took[stage.name] = float(read_json(folder, DONE_FILE).get("seconds", 0.0))
            else:
                working += stage_time.worked(folder)
        return cls(took, frozenset(begun), working)


class Clock:
    """Seconds that a run has taken: in this process, and in those before it."""

    def __init__(self, record: Record, progress: Progress) -> None:
        self._before = record.used + progress.working
        self._start = time.monotonic()

    def used(self) -> float:
        return self._before + time.monotonic() - self._start


def replanned(record: Record, used: float) -> Record:
    """The record with what is left fitted into the time that is left, written.

    Configs that the user has edited, and runs without a limit, keep their numbers.
    """
    if record.seconds is None or record.is_edited():
        kept = replace(record, used=used)
        kept.save()
        return kept
    progress = Progress.of(read_pipeline(record.pipeline_file))
    left = record.seconds - used + progress.working
    schedule = rest(record.plan, record.schedule, progress.took, progress.begun, left)
    return record.written(schedule, used)
