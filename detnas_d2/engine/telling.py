"""What the stage of a pipeline that runs in this process tells while it runs.

Trainings, searches and evaluations say how far they are (:func:`tell`, :func:`tell_part`). Outside
a pipeline nobody listens. In one, rank 0 has a :class:`Teller`, which makes a line of it and keeps
``progress.json`` in the stage's folder, for who looks from outside.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from detectron2.utils.events import CommonMetricPrinter

from detnas_d2.engine.outlook import Outlook, all_text
from detnas_d2.utils.io import write_brief
from detnas_d2.utils.screen import Line, duration

PROGRESS_FILE = "progress.json"
_WRITTEN = 2.0
"""Seconds between two writes of the file."""
_BATCHES = "batches, "


@dataclass(frozen=True)
class Part:
    """How far something is; ``since``, ``first``: the clock and ``done`` when it was told first."""

    what: str
    done: float
    total: float
    since: float
    first: float

    def told(self, done: float, total: float) -> Part:
        return replace(self, done=done, total=total)

    @property
    def percent(self) -> str:
        return _percent(self.done, self.total) if self.total else ""

    def seconds_left(self, now: float) -> float | None:
        """At the pace since it was told first; None before that can be known."""
        if self.done <= self.first or not self.total:
            return None
        return (now - self.since) / (self.done - self.first) * max(0.0, self.total - self.done)


class Teller:
    """The line about a stage, and its file.

    Args:
        title: e.g. "[2/5] search".
        folder: of the stage.
        line: where it is shown; None: nowhere.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        title: str,
        folder: str,
        outlook: Outlook,
        line: Line | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.outlook, self.line = title, outlook, line
        self._file = os.path.join(folder, PROGRESS_FILE)
        self._clock = clock
        self._written = -_WRITTEN
        self._main: Part | None = None
        self._part: Part | None = None
        self._eta: tuple[float, float] | None = None  # (seconds, when they were told)
        self._note = ""

    def tell(
        self, what: str, done: float, total: float, *, eta: float | None = None, note: str = ""
    ) -> None:
        """How far the stage is: ``done`` of ``total`` of ``what``, e.g. iterations.

        Args:
            eta: seconds left, if the caller knows better than by the pace of what was done.
            note: e.g. the best so far.
        """
        now = self._clock()
        self._main, self._part, self._note = self._next(self._main, what, done, total), None, note
        eta = self._main.seconds_left(now) if eta is None else eta
        self._eta = None if eta is None else (eta, now)
        if eta is not None and total:
            self.outlook.measure(eta, 1.0 - done / total)
        self._show()

    def tell_part(self, what: str, done: float, total: float) -> None:
        """How far something in between is, e.g. an evaluation; all of a stage that evaluates one
        network.
        """
        own = self._main is None or self._main.what.startswith(_BATCHES)
        if own and self.outlook.running.kind == "evaluate":
            self.tell(f"{_BATCHES}{what}", done, total)
            return
        self._part = self._next(self._part, what, done, total)
        self._show()

    def _next(self, part: Part | None, what: str, done: float, total: float) -> Part:
        if part is None or part.what != what or done < part.done:
            return Part(what, done, total, self._clock(), done)
        return part.told(done, total)

    def status(self) -> dict[str, Any]:
        """What was told last, with the seconds that are left; JSON values."""
        now, main, part = self._clock(), self._main, self._part
        eta = None if self._eta is None else max(0.0, self._eta[0] - (now - self._eta[1]))
        told: dict[str, Any] = {"eta_seconds": None, "all_seconds": None, "all_measured": False}
        if eta is not None:
            everything, told["all_measured"] = self.outlook.seconds_left(eta)
            more = (part.seconds_left(now) if part else None) or 0.0
            told["eta_seconds"] = round(self.outlook.stage_left(eta) + more, 1)
            told["all_seconds"] = round(everything + more, 1)
        return {
            "what": main.what if main else "",
            "done": main.done if main else 0,
            "total": main.total if main else 0,
            "part": f"{part.what} {part.percent}".strip() if part else "",
            "note": self._note,
            **told,
        }

    def text(self) -> str:
        """The line, e.g. ``[2/5] search: 34 % of 1,000 candidates | ETA 12 min | best 31.4``."""
        return f"{self.title}: {status_text(self.status(), last=not self.outlook.later)}"

    def _show(self) -> None:
        if self.line is not None:
            self.line.show(self.text)
        now = self._clock()
        if now - self._written >= _WRITTEN:
            self._written = now
            with contextlib.suppress(OSError):  # a full disk is told by what matters
                write_brief(self._file, json.dumps({**self.status(), "time": time.time()}))


def status_text(status: dict[str, Any], *, last: bool = False) -> str:
    """Text of a :meth:`Teller.status`; without the time of all stages for the ``last`` one."""
    done, total = status["done"], status["total"]
    how_far = [f"{_percent(done, total)} of {total:,} {status['what']}"] if total else []
    parts = [", ".join([*how_far, *([status["part"]] if status["part"] else [])]) or "begins"]
    if status["eta_seconds"] is not None:
        eta = f"ETA {duration(status['eta_seconds'])}"
        all_ = "" if last else f", {all_text(status['all_seconds'], status['all_measured'])}"
        parts.append(eta + all_)
    return " | ".join([*parts, *([status["note"]] if status["note"] else [])])


def _percent(done: float, total: float) -> str:
    return f"{100 * done / total:.0f} %"


_current: list[Teller] = []


@contextlib.contextmanager
def telling(teller: Teller | None) -> Iterator[None]:
    """Within the block ``teller`` listens; afterwards its line and file are gone."""
    _current[:] = [] if teller is None else [teller]
    try:
        yield
    finally:
        _current.clear()
        if teller is not None and teller.line is not None:
            teller.line.clear()
    if teller is not None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(teller._file)


def tell(what: str, done: float, total: float, *, eta: float | None = None, note: str = "") -> None:
    """:meth:`Teller.tell` of the stage of a pipeline that runs in this process, if one does."""
    for teller in _current:
        teller.tell(what, done, total, eta=eta, note=note)


def tell_part(what: str, done: float, total: float) -> None:
    """:meth:`Teller.tell_part` of the stage of a pipeline that runs in this process."""
    for teller in _current:
        teller.tell_part(what, done, total)


@contextlib.contextmanager
def afterwards(what: str) -> Iterator[None]:
    """Within the block the stage that runs does what comes after its main part."""
    before = [(teller, teller.title, teller.outlook) for teller in _current]
    for teller, title, outlook in before:
        running = replace(outlook.running, work=outlook.rest)
        teller.title, teller.outlook = f"{title}, {what}", replace(outlook, running=running, rest=0)
    try:
        yield
    finally:
        for teller, title, outlook in before:
            teller.title, teller.outlook = title, outlook


def outlook_text(eta: float, share: float) -> str:
    """Text after the remaining time of what runs: that of all stages; "" outside a pipeline."""
    return "".join(f" ({text})" for teller in _current if (text := teller.outlook.text(eta, share)))


class Printer(CommonMetricPrinter):
    """Detectron2's line of a training, with the time left of the pipeline."""

    def _get_eta(self, storage: Any) -> str | None:
        text = super()._get_eta(storage)
        if text and "eta_seconds" in storage.histories():
            share = (self._max_iter - storage.iter - 1) / self._max_iter
            text += outlook_text(storage.history("eta_seconds").latest(), share)
        return text
