"""A run's time: what its stages took."""

from __future__ import annotations

import time
from dataclasses import dataclass

from detnas_d2.pipeline import stage_time
from detnas_d2.pipeline.definition import Pipeline
from detnas_d2.pipeline.state import DONE, DONE_FILE, NOT_STARTED, read_json, state_of
from detnas_d2.pipeline.status import products
from detnas_d2.recipe.record import Record


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
