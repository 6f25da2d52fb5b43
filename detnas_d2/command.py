"""Exit of every command: one line for what a person can put right, a traceback for what not.

Imports nothing large, so that Ctrl-C is answered by one line from the first moment on.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from detnas_d2.utils.errors import InputError
from detnas_d2.utils.screen import Line

FAILED, INTERRUPTED, TERMINATED = 1, 130, 143
TRACEBACK = "DETNAS_D2_TRACEBACK"
"""Environment variable: if it is set, tracebacks are printed for every error."""

LOG_FILE = "log.txt"
_LONG = 1000  # characters of a line, where a text of the input stands in it
_LOGGER = "detnas_d2"


def run_command(main: Callable[[], Any], goes_on: str | None = None) -> None:
    """Calls ``main``; ends the process with its exit status unless that is 0.

    An :class:`InputError`, a failed system call and other errors that :func:`is_expected` become
    one line on stderr and status 1; the traceback is in the run's log file, if it has one, which
    the line names unless the text of an InputError says all. Ctrl-C becomes one line, with the
    command that goes on, and status 130, SIGTERM the same with status 143, and the processes that
    were started end too. Any other error is a mistake of the program: its traceback is shown.

    Args:
        main: what it returns is the status, None for 0; it may raise SystemExit.
        goes_on: option by which the same command goes on where it was ended, "" if it needs none;
            None: it does not.
    """
    try:
        with _sigterm_interrupts():
            status = main()
    except KeyboardInterrupt as error:
        terminated = isinstance(error, _Terminated)
        _leave_interrupted("" if goes_on is None else command_again(goes_on), terminated)
    except Exception as error:
        if not is_expected(error) or os.environ.get(TRACEBACK):
            raise
        log = getattr(error, "log_file", None) or log_traceback(error)
        hint = f" (traceback: {log})" if log and not isinstance(error, InputError) else ""
        print(f"error: {text_of(error)}{hint}", file=sys.stderr)
        status = FAILED
    sys.stdout.flush()
    if status:
        sys.exit(status)


def is_expected(error: BaseException) -> bool:
    """Whether an error tells of input, data, disk, memory or divergence, not of a bug."""
    if isinstance(error, OSError):
        return error.errno is not None
    # Of torch, which is not imported here.
    return isinstance(error, (InputError, FloatingPointError)) or _is_out_of_memory(error)


def text_of(error: BaseException) -> str:
    """Text about an expected error."""
    if isinstance(error, OSError):
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([*names, error.strerror or type(error).__name__])
    text = str(error).strip() or type(error).__name__
    if isinstance(error, FloatingPointError):
        return f"{text.splitlines()[0]} (a lower SOLVER.BASE_LR or a longer warm-up may help)"
    if _is_out_of_memory(error):
        return f"{text.splitlines()[0]} (a lower SOLVER.IMS_PER_BATCH needs less)"
    lines = text.split("\n")
    return "\n".join(line if len(line) <= _LONG else f"{line[:_LONG]}..." for line in lines)


def _is_out_of_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError"


def log_traceback(error: BaseException) -> str:
    """Writes an error's traceback to the log file of the run in this process; returns its name.

    "" if no run has begun.
    """
    for handler in logging.getLogger(_LOGGER).handlers:
        name = getattr(getattr(handler, "stream", None), "name", None)
        if not isinstance(name, str) or name.startswith("<"):  # the screen
            continue
        info = (type(error), error, error.__traceback__)
        arguments = (_LOGGER, logging.ERROR, __file__, 0, "The command failed:", (), info)
        handler.handle(logging.LogRecord(*arguments))
        return name
    return ""


@contextmanager
def tracebacks_in(folder: Callable[[], str]) -> Iterator[None]:
    """Tracebacks of expected errors in the block are appended to the log file in a folder."""
    try:
        yield
    except Exception as error:
        if is_expected(error) and not getattr(error, "log_file", None):
            log_file = _append(os.path.join(folder(), LOG_FILE), error)
            error.log_file = log_file  # type: ignore[attr-defined]  # errors of any class
        raise


def _append(file: str, error: BaseException) -> str:
    text = "".join(traceback.format_exception(error))
    try:
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "a", encoding="utf-8") as log:
            log.write(text)
    except OSError:  # what is wrong may be the folder itself
        return ""
    return file


class HideExpected(logging.Filter):
    """Keeps tracebacks of expected errors off the screen: the command's last line tells them."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return error is None or not is_expected(error)


def command_again(option: str = "") -> str:
    """The command line of this process with another option, as a shell takes it.

    Without ``option`` if it has it, or only evaluates.
    """
    count = len(sys.argv) - 1
    arguments = sys.orig_argv[len(sys.orig_argv) - count :]
    program = sys.orig_argv[: len(sys.orig_argv) - count]
    name = os.path.basename(program[-1]) if program else ""  # none: arguments were replaced
    if name and shutil.which(name) == program[-1]:  # a console script
        program = [name]
    if option and not {option, "--eval-only"}.intersection(arguments):
        program = [*program, option]
    return shlex.join([*program, *arguments])


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which batch systems and container engines end a process with."""


_answers = False
"""Whether SIGTERM is answered here."""
_masks = threading.local()


def _before_fork() -> None:
    if _answers:
        _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def _after_fork(child: bool) -> None:
    if _answers:
        if child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


# A forked process, which is no program of its own, ends by SIGTERM as any other. Python forgets
# signals that come while it forks, so that SIGTERM has to wait until it is the default there.
os.register_at_fork(
    before=_before_fork,
    after_in_parent=partial(_after_fork, False),
    after_in_child=partial(_after_fork, True),
)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Within the block SIGTERM ends what runs as Ctrl-C does, in this process alone; unless it is
    ignored, or somebody else answers it.
    """
    global _answers

    def answer(number: int, frame: object) -> None:
        raise _Terminated

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        or "LOCAL_RANK" in os.environ  # torchrun ends ranks, which may wait for each other in C
    ):
        yield
        return
    signal.signal(signal.SIGTERM, answer)
    _answers = True
    try:
        yield
    finally:
        _answers = False
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave_interrupted(again: str, terminated: bool) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if "multiprocessing.process" in sys.modules:
        from multiprocessing import active_children

        for child in active_children():
            child.kill()
    sys.stdout.flush()
    Line().clear()
    how = f"; to go on: {again}" if again else ""
    print(f"{'terminated' if terminated else 'interrupted'}{how}", file=sys.stderr, flush=True)
    # What would be taken down holds nothing that is not on disk.
    os._exit(TERMINATED if terminated else INTERRUPTED)
