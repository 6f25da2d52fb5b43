"""Where a stage of a pipeline stands, told by the files in its folder.

``done.json`` is written at the end, ``failed.json`` by an error. Who runs a stage holds a lock on
``running.lock``, which the system takes back when the process ends, however it ends: a stage that
was killed reads "stopped". The file tells the host and process for people to read.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detnas_d2.files import write_text
from detnas_d2.files.errors import InputError

logger = logging.getLogger("detnas_d2.pipeline")

DONE_FILE, FAILED_FILE, LOCK_FILE = "done.json", "failed.json", "running.lock"

NOT_STARTED, RUNNING, STOPPED = "not started", "running", "stopped"
FAILED, DONE, OUTDATED = "failed", "done", "outdated"
"""OUTDATED: run with another config, its own or that of a stage before it."""

# Somebody who only looks holds a shared lock for a moment.
_ATTEMPTS, _PAUSE = 20, 0.05


class StageBusy(InputError):
    """Another process runs the stage."""


@contextmanager
def running(folder: str, fingerprint: str) -> Iterator[None]:
    """Marks the stage in ``folder`` as running; an error in the body leaves ``failed.json``.

    Args:
        fingerprint: of the stage's config; kept in the lock's file.

    Raises:
        StageBusy: naming the process that runs it already.
    """
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, LOCK_FILE), "a+") as lock:
        _acquire(lock, folder)
        lock.truncate(0)
        who = {"host": socket.gethostname(), "pid": os.getpid(), "fingerprint": fingerprint}
        json.dump(who, lock)
        lock.flush()
        failed = os.path.join(folder, FAILED_FILE)
        if os.path.exists(failed):
            os.remove(failed)
        try:
            yield
        except Exception as error:
            last = str(error).strip().splitlines()[-1:] or [""]
            report = {"error": f"{type(error).__name__}: {last[0]}", "time": time.time()}
            write_text(failed, json.dumps(report, indent=1))
            raise


def _acquire(lock: Any, folder: str) -> None:
    for _ in range(_ATTEMPTS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(_PAUSE)
        except OSError as error:  # some network file systems have no locks
            logger.warning("%s: %s; it will read %r while it runs", folder, error, STOPPED)
            return
    who = read_json(folder, LOCK_FILE) or {}
    raise StageBusy(f"{folder}: process {who.get('pid')} of {who.get('host')} runs it")


def is_running(folder: str) -> bool:
    """Whether a process, on any host that sees the folder, holds the stage's lock."""
    try:
        with open(os.path.join(folder, LOCK_FILE)) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks
        return False
    return False


def read_json(folder: str, name: str) -> dict[str, Any] | None:
    """A state file of a stage, None if there is none (or a lock that is just being written)."""
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as text:
            return json.load(text)
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def state_of(folder: str) -> str:
    """NOT_STARTED, RUNNING, STOPPED, FAILED or DONE, whatever the config it was done with."""
    if is_running(folder):
        return RUNNING
    for name, state in ((DONE_FILE, DONE), (FAILED_FILE, FAILED), (LOCK_FILE, STOPPED)):
        if os.path.exists(os.path.join(folder, name)):
            return state
    return NOT_STARTED
