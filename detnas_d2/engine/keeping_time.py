"""Ends a stage that would take longer than it may, so that what is left can be planned anew.

Only a run with a limit of time gives its stages an :class:`Allowance`. They are ended where they
can go on later.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from detectron2.config import CfgNode
from detectron2.engine import HookBase

from detnas_d2.engine.outlook import steps_of
from detnas_d2.evaluation.ranks import Ranks

if TYPE_CHECKING:
    from detnas_d2.engine.trainers.trainer import Trainer

TOLERANCE = 1.25
"""A stage may take so many times what was expected of it."""


@dataclass(frozen=True)
class Expected:
    """Seconds of a stage: until its first iteration or candidate, for all of them, and then."""

    before: float
    loop: float
    after: float

    @property
    def seconds(self) -> float:
        return self.before + self.left(0.0)

    def left(self, share: float) -> float:
        """When ``share`` of the iterations or candidates is done."""
        return (1.0 - share) * self.loop + self.after


@dataclass(frozen=True)
class Allowance:
    """What a stage may take.

    Attributes:
        every: iterations between two looks at a training of which nothing is kept when it is ended;
            0: what is done is kept, and it is looked at after every checkpoint.
        until: share of the loop after which it is not ended any more.
        given: seconds that it may take from now on, however slow it is: it is only ended when they
            are too few even if it were as quick as expected.
    """

    expected: Expected
    every: int = 0
    until: float = 1.0
    given: float | None = None


@dataclass(frozen=True)
class Late:
    """Why a stage was ended: after ``done`` iterations or generations, by a loop that then took
    ``slowness`` times as long as expected.
    """

    done: int
    slowness: float


class OutOfTime(BaseException):
    """Ends a stage. No error: it passes by what handles those, up to who planned the stage."""

    def __init__(self, late: Late) -> None:
        super().__init__(f"ended after {late.done}, {late.slowness:.2f} times as slow as expected")
        self.late = late


class Watch:
    """Compares what a stage takes with its allowance, from now on.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, allowance: Allowance, clock: Callable[[], float] = time.monotonic) -> None:
        self.allowance = allowance
        self._clock = clock
        self._start = clock()
        self._limit = math.inf

    def begin(self, share: float) -> None:
        """The loop begins, or goes on: ``share`` of it was done in starts before this one."""
        expected = self.allowance.expected
        own = TOLERANCE * (expected.before + expected.left(share))
        self._limit = max(own, self.allowance.given or 0.0)

    def look(self, share: float, late: Late) -> None:
        """Ends the stage if it will be late (collective; the word of rank 0 counts).

        Args:
            share: of the loop, that is done.
            late: how far it is, and its pace.

        Raises:
            OutOfTime: on all ranks.
        """
        if share >= self.allowance.until:
            return
        took = self._clock() - self._start
        slowness = late.slowness if self.allowance.given is None else 1.0
        is_late = took + slowness * self.allowance.expected.left(share) > self._limit
        found = Ranks().from_main(late if is_late else None)
        if found is not None:
            raise OutOfTime(found)


_current: list[Watch] = []


@contextlib.contextmanager
def watching(allowance: Allowance | None) -> Iterator[None]:
    """Within the block the stage that runs in this process may take so long; None: any time."""
    _current[:] = [] if allowance is None else [Watch(allowance)]
    try:
        yield
    finally:
        _current.clear()


def current_watch() -> Watch | None:
    """That of the stage which runs in this process, if it has one."""
    return _current[0] if _current else None


class KeepTime(HookBase):
    """Looks at the pace of a training; the last of the hooks.

    The pace is that of the iterations since the look before, evaluations in between left out.
    """

    def __init__(self, watch: Watch, cfg: CfgNode) -> None:
        self._watch, self._cfg = watch, cfg
        self._period = watch.allowance.every or cfg.SOLVER.CHECKPOINT_PERIOD

    def before_train(self) -> None:
        self._since = self.trainer.start_iter
        self._steps = steps_of(self._cfg, self.trainer.max_iter)
        self._watch.begin(self._share(self._since))

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period or done >= self.trainer.max_iter:
            return
        seconds = self._step_seconds()
        self._since = done
        if seconds is not None:
            slowness = seconds * self._steps / self._watch.allowance.expected.loop
            self._watch.look(self._share(done), Late(done, slowness))

    def _share(self, done: int) -> float:
        return steps_of(self._cfg, done) / self._steps

    def _step_seconds(self) -> float | None:
        """Since the last look; an iteration of two steps counts as two."""
        histories, new = self.trainer.storage.histories(), self.trainer.iter + 1 - self._since
        found = histories["time"].values()[-new:] if "time" in histories else []
        seconds = [
            seconds / (steps_of(self._cfg, number + 1) - steps_of(self._cfg, number))
            for seconds, number in found
        ]
        return typical(seconds) if seconds else None


def typical(seconds: Sequence[float]) -> float:
    """Mean without the slowest tenth, of several at least one: a machine that is busy for a second
    is not slow, one that is busy every other second is.
    """
    return statistics.fmean(sorted(seconds)[: len(seconds) - max(1, len(seconds) // 10)] or seconds)


def keep_time(trainer: Trainer) -> None:
    """Has a training ended where it would take longer than its stage may."""
    found = current_watch()
    if found is not None:
        trainer.register_hooks([KeepTime(found, trainer.cfg)])
