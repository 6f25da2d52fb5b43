"""A line about progress on the screen, written over in place; in a file or pipe one now and then.

Imports nothing large: commands clear the line when they end.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

_CLEAR = "\r\x1b[K"  # to the line's beginning, and erase to its end
_REDRAW = 0.2  # seconds between two changes of a terminal's line

# Seconds between two lines of a log, and until when they come often.
_OFTEN, _EARLY, _SELDOM = 10.0, 600.0, 60.0


class Pace:
    """When a log gets another line: every ten seconds, after ten minutes every minute.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Counts the ten minutes from now on."""
        self._start = self._last = self._clock()

    def said(self) -> None:
        """Notes that there was a line just now."""
        self._last = self._clock()

    def due(self) -> bool:
        """Whether it is time for a line; it counts as said then."""
        now = self._clock()
        if now - self._last < (_OFTEN if now - self._start < _EARLY else _SELDOM):
            return False
        self._last = now
        return True


def is_terminal(stream: TextIO) -> bool:
    """Whether lines of a stream can be written over."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class Line:
    """The line about progress of a process.

    Args:
        stream: stderr by default, as stdout is for results.
        clock: seconds, monotonic.
    """

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._pace: Pace | None = None
        self._drawn = -_REDRAW
        self._text = ""

    @property
    def stream(self) -> TextIO:
        return self._stream or sys.stderr

    def show(self, text: Callable[[], str]) -> None:
        """Makes ``text()`` the line, unless that comes too soon after the last one."""
        if is_terminal(self.stream):
            if self._clock() - self._drawn >= _REDRAW:
                self._drawn = self._clock()
                self._text = text()
                self._write(f"{_CLEAR}{self._fitted(self._text)}")
            return
        if self._pace is None:
            self._pace = Pace(self._clock)
        if self._pace.due():
            self._write(f"{text()}\n")

    def begin(self, text: str) -> None:
        """Makes ``text`` the line, which tells of something that takes a while and says no more;
        where it cannot be written over it is there at once.
        """
        if is_terminal(self.stream):
            self.show(lambda: text)
        else:
            self._write(f"{text}\n")

    def say(self, text: str) -> None:
        """Writes a line that stays, above the one about progress."""
        if is_terminal(self.stream):
            self._write(f"{_CLEAR}{text}\n{self._fitted(self._text)}")
        else:
            self._write(f"{text}\n")

    def clear(self) -> None:
        """Takes the line away: on a terminal whatever process wrote it."""
        self._text = ""
        self._drawn = -_REDRAW
        self._pace = None
        if is_terminal(self.stream):
            self._write(_CLEAR)

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()

    def _fitted(self, text: str) -> str:
        """As much of a text as a line of the terminal takes: a longer one could not be erased."""
        try:
            columns = os.get_terminal_size(self.stream.fileno()).columns - 1
        except (OSError, ValueError):
            columns = 79
        return text if len(text) <= max(columns, 20) else f"{text[: columns - 3]}..."


def duration(seconds: float) -> str:
    """A time as a person says it: "45 s", "4 min 10 s", "12 min", "2 h 5 min", "3 d 4 h"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return _both(whole, 60, "min", "s")
    minutes = round(whole / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return _both(minutes, 60, "h", "min")
    return _both(round(minutes / 60), 24, "d", "h")


def _both(count: int, size: int, large: str, small: str) -> str:
    rest = f" {count % size} {small}" if count % size else ""
    return f"{count // size} {large}{rest}"
