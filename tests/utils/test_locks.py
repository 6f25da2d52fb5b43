"""Locks on folders: one writer, whatever becomes of it and its children."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from detnas_d2.utils.locks import LOCK_FILE, FolderBusy, exclusive, holder, is_held

FORK = multiprocessing.get_context("fork")


def started(work: Callable, *args: object) -> multiprocessing.Process:
    process = FORK.Process(target=work, args=args)
    process.start()
    return process


def _hold(folder: str, held: object) -> None:
    with exclusive(folder):
        held.set()
        signal.pause()


def test_second_program_gets_one_line_that_names_the_first(tmp_path: Path) -> None:
    held = FORK.Event()
    first = started(_hold, str(tmp_path), held)
    assert held.wait(30) and is_held(str(tmp_path))
    with pytest.raises(FolderBusy) as caught, exclusive(str(tmp_path)):
        raise AssertionError("two programs wrote into a folder")
    text = str(caught.value)
    assert str(tmp_path) in text and f"process {first.pid} of {os.uname().nodename}" in text
    assert "\n" not in text and is_held(str(tmp_path))
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert not is_held(str(tmp_path))
    with exclusive(str(tmp_path)):
        assert is_held(str(tmp_path))
    assert not is_held(str(tmp_path))


def _hold_with_child(folder: str, child: str, held: object, pids: object) -> None:
    with exclusive(folder):
        if child == "fork":
            pids.put(started(signal.pause).pid)
        else:
            command = [sys.executable, "-c", "import signal; signal.pause()"]
            pids.put(subprocess.Popen(command, close_fds=False).pid)
        held.set()
        signal.pause()


@pytest.mark.parametrize("child", ["fork", "exec"])
def test_children_of_a_killed_program_do_not_keep_the_lock(child: str, tmp_path: Path) -> None:
    held, pids = FORK.Event(), FORK.Queue()
    parent = started(_hold_with_child, str(tmp_path), child, held, pids)
    assert held.wait(30)
    orphan = pids.get()
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    try:
        os.kill(orphan, 0)  # it lives
        assert not is_held(str(tmp_path))
        with exclusive(str(tmp_path)):
            pass
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_child_that_ends_leaves_the_lock_with_its_parent(tmp_path: Path) -> None:
    with exclusive(str(tmp_path)):
        started(int).join()
        assert is_held(str(tmp_path))


def test_who_holds_it_is_written_and_leftovers_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".partial-x").write_text("half")
    (tmp_path / LOCK_FILE).write_text("longer than what comes " * 20)
    with exclusive(str(tmp_path), fingerprint="f"):
        who = json.loads((tmp_path / LOCK_FILE).read_text())
        assert (who["pid"], who["fingerprint"]) == (os.getpid(), "f")
    assert os.listdir(tmp_path) == [LOCK_FILE]
    (tmp_path / LOCK_FILE).write_text("{torn")
    assert holder(str(tmp_path)) == "another process"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_file_system_without_locks(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):
        with exclusive(str(tmp_path)):
            assert not is_held(str(tmp_path))
    (record,) = caplog.records
    assert str(tmp_path) in record.message
    assert "no locks (No locks available): nothing keeps a second program" in record.message
