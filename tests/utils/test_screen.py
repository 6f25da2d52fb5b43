"""The line about progress, on terminals and elsewhere."""

from __future__ import annotations

import io
import os

import pytest

from detnas_d2.utils.screen import Line, Pace, duration

CLEAR = "\r\x1b[K"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 7


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(os, "get_terminal_size", lambda fileno: os.terminal_size((21, 9)))
    return Clock()


def test_a_terminal_has_one_line(clock: Clock) -> None:
    screen = Terminal()
    line = Line(screen, clock)
    line.show(lambda: "10 %")
    clock.now = 0.1
    line.show(lambda: pytest.fail("too soon"))
    clock.now = 0.3
    line.show(lambda: "a line of more than a row")
    assert screen.getvalue() == f"{CLEAR}10 %{CLEAR}a line of more th..."
    line.say("warning: w")
    assert screen.getvalue().endswith(f"{CLEAR}warning: w\na line of more th...")
    line.clear()
    line.show(lambda: "20 %")  # at once
    assert screen.getvalue().endswith(f"...{CLEAR}{CLEAR}20 %")


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_elsewhere_a_line_now_and_then(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, kind: type[io.StringIO]
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    screen = kind()
    line = Line(screen, clock)
    for second in range(25):
        clock.now = float(second)
        line.show(lambda second=second: f"after {second} s")
        if second == 15:
            line.say("warning: w")
    line.clear()
    assert screen.getvalue() == "after 10 s\nwarning: w\nafter 20 s\n"


def test_what_takes_a_while_is_told_at_once(clock: Clock) -> None:
    terminal, log = Terminal(), io.StringIO()
    for screen in (terminal, log):
        line = Line(screen, clock)
        line.begin("measuring")
        line.clear()
    assert terminal.getvalue() == f"{CLEAR}measuring{CLEAR}" and log.getvalue() == "measuring\n"


def test_pace(clock: Clock) -> None:
    pace, said = Pace(clock), []
    for second in range(800):
        clock.now = float(second)
        if pace.due():
            said.append(second)
    assert said == [*range(10, 600, 10), 650, 710, 770]
    pace.restart()
    clock.now += 9.0
    assert not pace.due()
    clock.now += 1.0
    pace.said()
    assert not pace.due()


def test_duration() -> None:
    told = {
        -1: "0 s",
        3.4: "3 s",
        59.6: "1 min",
        250: "4 min 10 s",
        600: "10 min",
        3599: "1 h",
        7500: "2 h 5 min",
        86_399: "1 d",
        100_000: "1 d 4 h",
    }
    assert {seconds: duration(seconds) for seconds in told} == told
