"""One case of a campaign in a process of its own: forked, limited, its output kept."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from detnas_d2.command import run_command

_MEMORY = 12 << 30


class Outcome(NamedTuple):
    """``code``: exit status, None after the limit; ``seconds``: how long it took."""

    code: int | None
    text: str
    seconds: float

    @property
    def line(self) -> str:
        """What the command told at its end."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        return next((line for line in lines if line.startswith("error: ")), (lines or [""])[-1])

    @property
    def is_one_line(self) -> bool:
        """Whether an error was told as commands tell what a person can put right."""
        return self.line.startswith("error: ") and "Traceback (most recent" not in self.text


def run_forked(main: Callable[[], Any], folder: Path, limit: float) -> Outcome:
    """Runs ``main`` as the commands are run, in ``folder``; its session ends with the case."""
    log = folder.with_name(f"{folder.name}.out")
    begin = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # not a test's capture
            os.chdir(folder)
            run_command(main)
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = _wait(pid, begin + limit)
    if code is None:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return Outcome(code, log.read_text(errors="replace"), time.monotonic() - begin)


def _wait(pid: int, end: float) -> int | None:
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return None
