"""Runs of a pipeline in forked children of one process that has imported the package once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

HANG = "hang"


def start(
    pipeline: Path,
    log: Path,
    *opts: str,
    ranks: int = 1,
    before: Callable[[], object] | None = None,
) -> int:
    """Forks a child, in a session of its own, that runs the pipeline; returns its process id.

    Args:
        log: its output is appended to this file.
        opts: KEY VALUE overrides.
        ranks: processes that each stage is run on.
        before: called in the child first, e.g. to set a limit or make a system call fail.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        words = ["--config-file", str(pipeline), "--num-gpus", str(ranks), *opts]
        os._exit(_child(words, log, before))
    while os.getsid(pid) != pid:  # who asks for its processes must not come too early
        time.sleep(0.001)
    return pid


def _child(words: list[str], log: Path, before: Callable[[], object] | None) -> int:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # not a test's capture
    from detnas_d2.command import run_command
    from detnas_d2.engine import default_argument_parser
    from detnas_d2.pipeline.run import run_pipeline

    try:
        if before is not None:
            before()
        args = default_argument_parser().parse_args(words)
        run_command(lambda: run_pipeline(args) and None, goes_on="")
    except SystemExit as status:
        return int(status.code)
    except BaseException:
        traceback.print_exc()
        return 2  # a mistake of the program
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def wait(pid: int, limit: float = 240.0) -> int | str:
    """A child's exit code, -N for signal N, or HANG if it had to be killed after the limit."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    for member in session(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    os.waitpid(pid, 0)
    return HANG


def run(
    pipeline: Path,
    log: Path,
    *opts: str,
    ranks: int = 1,
    before: Callable[[], object] | None = None,
) -> tuple[int | str, str]:
    """Runs the pipeline to its end; returns the exit code and what it printed.

    The code is 1 if it was refused with one line, 2 if it failed with a traceback.
    """
    log.unlink(missing_ok=True)
    code = wait(start(pipeline, log, *opts, ranks=ranks, before=before))
    return code, log.read_text(errors="replace")


def session(leader: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(name))
    return found


def message(text: str) -> str:
    """The last line of an output, without colours: of a run that failed, why."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
