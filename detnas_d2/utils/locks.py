"""Locks of output folders. A writer holds its lock; the system takes it back when the process ends.

``flock`` on a file of the folder, closed in forked children. Not filelock, which torch brings in
any version: looking at a folder that one may only read needs a shared lock, for which it opens a
database; and in 3.18 a second program's attempt empties the file that names the first, and a killed
program's data loader workers keep the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import remove_partial, warn_once

LOCK_FILE = "running.lock"

# Somebody who only looks holds a shared lock for a moment.
_ATTEMPTS, _PAUSE = 20, 0.05


class FolderBusy(InputError):
    """Another process writes into the folder."""


class Lock:
    """An exclusive lock on a file, which is made if it is not there and stays.

    Raises:
        OSError: the file cannot be opened for writing.
    """

    _open: set[Lock] = set()

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # not inherited by exec
        Lock._open.add(self)

    def acquire(self, *, wait: bool) -> bool:
        """Whether this process has the lock now; True, with a warning, where there are no locks."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError as error:
            warn_once(
                os.path.dirname(os.path.abspath(self.path)),
                "its file system has no locks (%s): nothing keeps a second program from writing "
                "into it, and what runs there reads 'stopped'",
                error.strerror,
            )
        return True

    def write(self, text: str) -> None:
        """Replaces the file's content; for who holds the lock."""
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)

    def release(self) -> None:
        Lock._open.discard(self)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    @classmethod
    def _release_all(cls) -> None:
        for lock in list(cls._open):
            lock.release()


# Closing a child's copy leaves the lock with its parent.
os.register_at_fork(after_in_child=Lock._release_all)


@contextlib.contextmanager
def exclusive(folder: str, **details: Any) -> Iterator[None]:
    """Holds the lock of a folder, which is made if need be, while the block runs.

    What a process that was killed had begun to write there is removed.

    Args:
        details: JSON values, kept in the lock's file next to host and process.

    Raises:
        FolderBusy: naming the folder, and the process that holds it.
    """
    os.makedirs(folder, exist_ok=True)
    lock = Lock(os.path.join(folder, LOCK_FILE))
    try:
        for _ in range(_ATTEMPTS):
            if lock.acquire(wait=False):
                break
            time.sleep(_PAUSE)
        else:
            raise FolderBusy(
                f"{folder} is in use: {holder(folder)} writes into it; wait for it, end it, or use "
                "another OUTPUT_DIR"
            )
        lock.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), **details}))
        remove_partial(folder)
        yield
    finally:
        lock.release()


def holder(folder: str) -> str:
    """Text that names the process which holds the lock of a folder, or held it last."""
    try:
        who = json.loads(Path(folder, LOCK_FILE).read_text(encoding="utf-8"))
        return f"process {who['pid']} of {who['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # just being written
        return "another process"


def is_held(folder: str) -> bool:
    """Whether a process, on any host that sees the folder, holds its lock. Keeps nobody out."""
    try:
        with open(os.path.join(folder, LOCK_FILE)) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks
        return False
    return False
