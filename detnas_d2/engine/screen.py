"""Screen output of a run: progress, warnings and results; log.txt has the rest."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator

from detnas_d2.command import HideExpected
from detnas_d2.utils.compat import end_logging
from detnas_d2.utils.io import digest
from detnas_d2.utils.screen import Line

# Of Detectron2: iterations, the ends of a training, an evaluation's progress and its results.
_SHOWN = (
    "detectron2.utils.events",
    "detectron2.engine.train_loop",
    "detectron2.engine.hooks",
    "detectron2.evaluation.evaluator",
    "detectron2.evaluation.testing",
)
_OWN = "detnas_d2"
_PYTHON = "py.warnings"


class Shown(logging.Filter):
    """Passes warnings, this package's messages and those of Detectron2 that tell of progress.

    Detectron2 also logs its environment, the whole config, the whole model, the class counts of
    every dataset it loads and each checkpoint it writes.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            return True
        return record.levelno >= logging.INFO and (_is_own(record) or record.name in _SHOWN)


def _is_own(record: logging.LogRecord) -> bool:
    return record.name == _OWN or record.name.startswith(f"{_OWN}.")


def screen_handlers(names: Iterable[str]) -> Iterator[logging.Handler]:
    """The handlers of the loggers ``names`` that write to the screen."""
    for name in names:
        for handler in logging.getLogger(name).handlers:
            if getattr(handler, "stream", None) is sys.stdout:
                yield handler


class OnScreen(logging.Handler):
    """Warnings, each once, above the line about progress; nothing else.

    Args:
        line: where they go.
        shown: file that names those that were shown, of which other processes of the run know.
    """

    def __init__(self, line: Line, shown: str) -> None:
        super().__init__(logging.WARNING)
        self._line, self._shown = line, shown
        self.addFilter(HideExpected())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            if self._is_new(text):
                self._line.say(text)
        except Exception:
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        """The level, then the text, with a traceback if it has one. Lists of others, as of the
        names that a checkpoint lacks, are left to the log file.
        """
        text = f"{record.levelname.lower()}: {super().format(record)}"
        first, *rest = text.split("\n")
        if not rest or record.exc_info or _is_own(record):
            return text
        return f"{first} {len(rest)} lines, which are in log.txt"

    def _is_new(self, text: str) -> bool:
        mark = digest(text)
        with open(self._shown, "a+", encoding="utf-8") as file:
            file.seek(0)
            if mark in file.read().split():
                return False
            file.write(f"{mark}\n")
            return True


def quiet(names: Collection[str], line: Line | None, shown: str) -> None:
    """Has the loggers ``names`` show warnings alone, each once, see :class:`OnScreen`; or, without
    a line, as on ranks other than 0, nothing.

    What libraries warn of by Python's ``warnings`` goes to the log file; PyTorch's own logger,
    which tells e.g. of a CUDA compiler without a GPU, tells of errors.
    """
    logging.captureWarnings(True)
    logging.getLogger("torch").setLevel(logging.ERROR)
    files = []
    for name in names:
        logger = logging.getLogger(name)
        shows = [handler for handler in logger.handlers if isinstance(handler, OnScreen)]
        for handler in [*shows, *screen_handlers([name])]:
            logger.removeHandler(handler)
        files = list(logger.handlers)
        if line is not None:
            logger.addHandler(OnScreen(line, shown))
    logging.getLogger(_PYTHON).handlers[:] = files or [logging.NullHandler()]
    logging.getLogger(_PYTHON).propagate = False


@contextlib.contextmanager
def quiet_command(names: Collection[str], line: Line) -> Iterator[str]:
    """Within the block :func:`quiet`; yields the file of what was shown, for other processes."""
    end_logging(names)  # of the run before, if this process had one
    torch_level = logging.getLogger("torch").level
    with tempfile.TemporaryDirectory(prefix="detnas_d2-") as folder:
        shown = os.path.join(folder, "shown")
        quiet(names, line, shown)
        try:
            yield shown
        finally:
            logging.captureWarnings(False)
            logging.getLogger("torch").setLevel(torch_level)
            logging.getLogger(_PYTHON).handlers.clear()
            for name in names:
                logger = logging.getLogger(name)
                logger.handlers[:] = [h for h in logger.handlers if not isinstance(h, OnScreen)]


@contextlib.contextmanager
def prints_logged(logger: logging.Logger) -> Iterator[None]:
    """Sends what is printed, as pycocotools prints its tables, to the log file."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            yield
    finally:
        if text.getvalue().strip():
            logger.debug("%s", text.getvalue().rstrip())
