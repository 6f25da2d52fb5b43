"""How commands end: one line for what a person can put right, a traceback for a bug."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detnas_d2.command import HideExpected, is_expected, run_command, text_of, tracebacks_in
from detnas_d2.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_run_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of a run that this process made before is not written to."""
    monkeypatch.setattr(logging.getLogger("detnas_d2"), "handlers", [])


def _fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("a.yaml:3: SEED is -1"), "error: a.yaml:3: SEED is -1\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a.pth"), "error: a.pth: No space left"),
        (FloatingPointError("Loss became nan\nlosses"), "error: Loss became nan (a lower SOLVER"),
    ],
)
def test_expected_errors_are_one_line(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: _fail(error))
    shown = capsys.readouterr()
    assert ended.value.code == 1 and shown.out == ""
    assert shown.err.startswith(line) and shown.err.count("\n") == 1


def test_bugs_show_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ValueError("x"), KeyError("x"), TypeError("x"), AssertionError("x")):
        assert not is_expected(error)
        with pytest.raises(type(error)):
            run_command(lambda error=error: _fail(error))
    monkeypatch.setenv("DETNAS_D2_TRACEBACK", "1")
    with pytest.raises(InputError):
        run_command(lambda: _fail(InputError("x")))


def test_status_is_what_main_returns() -> None:
    run_command(lambda: None)
    run_command(lambda: 0)
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: 3)
    assert ended.value.code == 3


def test_tracebacks_go_to_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        with tracebacks_in(lambda: str(tmp_path / "out")):
            _fail(InputError("here"))

    with pytest.raises(SystemExit):
        run_command(main)
    log = tmp_path / "out" / "log.txt"
    assert capsys.readouterr().err == f"error: here (traceback: {log})\n"
    assert "Traceback" in log.read_text() and "InputError: here" in log.read_text()


def test_the_log_of_the_run_gets_the_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("detnas_d2")
    screen, file = logging.StreamHandler(sys.stdout), logging.FileHandler(tmp_path / "log.txt")
    screen.addFilter(HideExpected())
    logger.handlers[:] = [screen, file]
    try:
        with pytest.raises(SystemExit):
            run_command(lambda: _fail(InputError("here")))
        try:
            _fail(InputError("logged"))
        except InputError:
            logger.exception("in the training:")
    finally:
        logger.handlers.clear()
        file.close()
    assert capsys.readouterr().out == ""
    assert (tmp_path / "log.txt").read_text().count("Traceback") == 2


def test_unnamed_system_errors_are_told() -> None:
    assert text_of(BrokenPipeError(errno.EPIPE, "Broken pipe")) == "Broken pipe"
    assert not is_expected(OSError("no errno"))


@pytest.mark.parametrize("when", ["importing", "running"])
def test_ctrl_c_is_one_line(tmp_path: Path, when: str) -> None:
    mark = tmp_path / "running"
    lines = [
        "import time, pathlib, multiprocessing",
        "from detnas_d2.command import run_command",
        "def main():",
        f"    pathlib.Path({str(mark)!r}).touch()",
        "    import torch" if when == "importing" else "    pass",
        "    multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,)).start()",
        "    time.sleep(60)",
        "run_command(main)",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        # A suite that a shell started in the background ignores SIGINT, and so would the program.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 30
    while not mark.exists() and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == b"interrupted\n"
    assert process.returncode == 130
