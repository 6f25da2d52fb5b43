"""A run's time: what its stages took."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

from detnas_d2.pipeline import stage_time
from detnas_d2.pipeline.definition import Pipeline
from detnas_d2.pipeline.state import DONE, DONE_FILE, NOT_STARTED, read_json, state_of
from detnas_d2.pipeline.status import products
from detnas_d2.recipe.record import Record
from detnas_d2.search.front_file import has_front, read_front
from detnas_d2.search.history import History


@dataclass(frozen=True)
class Progress:
    """Stages of a run.

    Attributes:
        took: stage -> seconds, of those that are done, in order.
        working: stage -> seconds, of those that have begun and are not done.
        front: members of the front that a search has found; None while none has, or of one that
            looks for none.
    """

    took: dict[str, float]
    working: dict[str, float]
    front: int | None = None

    @property
    def begun(self) -> frozenset[str]:
        """Stages that have begun, done or not."""
        return frozenset({*self.took, *self.working})

    @property
    def since(self) -> float:
        """Seconds that the stages which have begun and are not done have worked: the longest, as
        several do so at the same time.
        """
        return max(self.working.values(), default=0.0)

    def without(self, stages: Collection[str]) -> Progress:
        """As if those had not begun."""
        took, working = (
            {name: seconds for name, seconds in own.items() if name not in stages}
            for own in (self.took, self.working)
        )
        return Progress(took, working, self.front)

    @classmethod
    def of(cls, pipeline: Pipeline, begun: Collection[str] = ()) -> Progress:
        """What the folders of a pipeline tell; ``begun``: stages that have, also without a file."""
        took: dict[str, float] = {}
        working: dict[str, float] = {}
        front = None
        for stage in pipeline.stages:
            folder = pipeline.folder(stage.name)
            state = state_of(folder, products(pipeline, stage))
            if state == NOT_STARTED:
                if stage.name in begun:
                    working[stage.name] = 0.0
                continue
            if state == DONE:
                took[stage.name] = float(read_json(folder, DONE_FILE).get("seconds", 0.0))
                if has_front(folder):
                    front = len(read_front(folder, History.read(folder)).members)
            else:
                working[stage.name] = stage_time.worked(folder)
        return cls(took, working, front)


class Clock:
    """Seconds that a run has taken: in this process, and in those before it."""

    def __init__(self, record: Record, progress: Progress) -> None:
        self._before = record.used + progress.since
        self._start = time.monotonic()

    def used(self) -> float:
        return self._before + time.monotonic() - self._start
