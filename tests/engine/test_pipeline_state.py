"""The state of a stage: what its files and its lock tell."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from detnas_d2.engine.pipeline_state import (
    DONE,
    DONE_FILE,
    FAILED,
    FAILED_FILE,
    LOCK_FILE,
    NOT_STARTED,
    RUNNING,
    STOPPED,
    StageBusy,
    read_json,
    running,
    state_of,
)


def _hold(folder: str, held: Event) -> None:
    with running(folder, "mark"):
        held.set()
        signal.pause()


def test_killed_process_leaves_a_stopped_stage(tmp_path: Path) -> None:
    folder = str(tmp_path / "stage")
    assert state_of(folder) == NOT_STARTED
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=_hold, args=(folder, held))
    process.start()
    assert held.wait(30)
    assert state_of(folder) == RUNNING
    assert read_json(folder, LOCK_FILE)["pid"] == process.pid
    busy = pytest.raises(StageBusy, match=f"process {process.pid} of .* runs it")
    with busy, running(folder, "mark"):
        raise AssertionError("two processes ran a stage")
    assert state_of(folder) == RUNNING  # and looking at it did not take the lock
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert state_of(folder) == STOPPED
    with running(folder, "mark"):
        assert state_of(folder) == RUNNING
        (tmp_path / "stage" / DONE_FILE).write_text("{}")
    assert state_of(folder) == DONE


def test_failure_is_kept_until_the_next_start(tmp_path: Path) -> None:
    folder = str(tmp_path)
    with pytest.raises(ValueError), running(folder, "mark"):
        raise ValueError("first line\nSOLVER.BASE_LR is nan")
    assert state_of(folder) == FAILED
    assert read_json(folder, FAILED_FILE)["error"] == "ValueError: SOLVER.BASE_LR is nan"
    with running(folder, "mark"):
        assert not (tmp_path / FAILED_FILE).exists()
    # An interruption is no failure.
    with pytest.raises(KeyboardInterrupt), running(folder, "mark"):
        raise KeyboardInterrupt
    assert state_of(folder) == STOPPED


def test_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*args: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with running(str(tmp_path), "mark"):
        assert state_of(str(tmp_path)) == STOPPED
    assert "Function not implemented; it will read 'stopped' while it runs" in caplog.text
