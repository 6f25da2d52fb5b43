"""Screen output of a run: progress, warnings and results; log.txt has the rest."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterable, Iterator

# Of Detectron2: iterations, the ends of a training, an evaluation's progress and its results.
_SHOWN = (
    "detectron2.utils.events",
    "detectron2.engine.train_loop",
    "detectron2.engine.hooks",
    "detectron2.evaluation.evaluator",
    "detectron2.evaluation.testing",
)
_OWN = "detnas_d2"


class Shown(logging.Filter):
    """Passes warnings, this package's messages and those of Detectron2 that tell of progress.

    Detectron2 also logs its environment, the whole config, the whole model, the class counts of
    every dataset it loads and each checkpoint it writes.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            return True
        own = record.name == _OWN or record.name.startswith(f"{_OWN}.")
        return record.levelno >= logging.INFO and (own or record.name in _SHOWN)


def screen_handlers(names: Iterable[str]) -> Iterator[logging.Handler]:
    """The handlers of the loggers ``names`` that write to the screen."""
    for name in names:
        for handler in logging.getLogger(name).handlers:
            if getattr(handler, "stream", None) is sys.stdout:
                yield handler


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
