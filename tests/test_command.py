"""How commands end: one line for what a person can put right, a traceback for a bug."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detnas_d2.command import (
    HideExpected,
    command_again,
    is_expected,
    run_command,
    text_of,
    tracebacks_in,
)
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
    log = tmp_path / "out" / "log.txt"

    def main(error: Exception) -> None:
        with tracebacks_in(lambda: str(log.parent)):
            _fail(error)

    for error, hint in (
        (InputError("here"), ""),  # a wrong option needs no search in a log
        (
            FloatingPointError("there"),
            f" (a lower SOLVER.BASE_LR or a longer warm-up may help) (traceback: {log})",
        ),
    ):
        with pytest.raises(SystemExit):
            run_command(lambda error=error: main(error))
        assert capsys.readouterr().err == f"error: {error}{hint}\n"
        assert (
            "Traceback" in log.read_text() and f"{type(error).__name__}: {error}" in log.read_text()
        )


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


@pytest.mark.parametrize(
    ("started", "count", "option", "again"),
    [
        (
            ["python", "train_net.py", "A", "b c"],
            2,
            "--resume",
            "python train_net.py --resume A 'b c'",
        ),
        (["python", "train_net.py", "--resume"], 1, "--resume", "python train_net.py --resume"),
        (["python", "t.py", "--eval-only"], 1, "--resume", "python t.py --eval-only"),
        (["python", "-m", "detnas_d2", "search"], 1, "", "python -m detnas_d2 search"),
        (["/v/python", "/v/bin/detnas", "search", "--data", "x"], 3, "", "detnas search --data x"),
        (["python", "run_pipeline.py"], 0, "", "python run_pipeline.py"),
        (["a", "b"], 2, "", "a b"),
    ],
)
def test_command_that_goes_on(
    started: list[str], count: int, option: str, again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", started)
    monkeypatch.setattr(sys, "argv", ["x", *started[len(started) - count :]])
    monkeypatch.setattr(shutil, "which", {"detnas": "/v/bin/detnas"}.get)
    assert command_again(option) == again


@pytest.mark.parametrize("when", ["importing", "running", "with_a_way_on", "terminated"])
def test_ctrl_c_and_sigterm_are_one_line(tmp_path: Path, when: str) -> None:
    mark, child, script = (tmp_path / name for name in ("running", "child", "program.py"))
    goes_on = "--resume" if when in ("with_a_way_on", "terminated") else None
    lines = [
        "import time, pathlib, multiprocessing",
        "from detnas_d2.command import run_command",
        "def main():",
        f"    pathlib.Path({str(mark)!r}).write_text('x')",
        "    import torch" if when == "importing" else "    pass",
        "    child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))",
        "    child.start()",
        f"    pathlib.Path({str(child)!r}).write_text(str(child.pid))",
        "    time.sleep(60)",
        f"run_command(main, {goes_on!r})",
    ]
    script.write_text("\n".join(lines))
    words = [sys.executable, str(script), "KEY", "a b"]
    process = subprocess.Popen(
        words,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        # A suite that a shell started in the background ignores SIGINT, and so would the program.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    written = mark if when == "importing" else child
    end = time.monotonic() + 30
    while not (written.exists() and written.read_text()) and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.2)
    word, number, status = "interrupted", signal.SIGINT, 130
    if when == "terminated":
        word, number, status = "terminated", signal.SIGTERM, 143
    process.send_signal(number)
    way = f"; to go on: {shlex.join([*words[:2], '--resume', *words[2:]])}" if goes_on else ""
    # To the end of stderr, which the child has too.
    assert process.communicate(timeout=20)[1] == f"{word}{way}\n"
    assert process.returncode == status


def test_a_forked_process_ends_by_sigterm_as_any_other(capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        for _ in range(20):  # also where the signal comes while the process is being made
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            child.start()
            child.terminate()
            child.join(20)
            assert child.exitcode == -signal.SIGTERM

    run_command(main, "--resume")
    assert capfd.readouterr().err == ""
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
