"""What a command shows of the stages that it runs: their beginnings, ends and failures."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from detnas_d2.command import is_expected, text_of
from detnas_d2.engine.keeping_time import Late
from detnas_d2.evaluation.scoring import DEFAULT_METRICS
from detnas_d2.pipeline.experiment import Run
from detnas_d2.pipeline.planning import Planner
from detnas_d2.pipeline.remaining import outlook_of
from detnas_d2.pipeline.stage_run import Told, run_stage
from detnas_d2.pipeline.state import DONE_FILE, read_json
from detnas_d2.utils.locks import FolderBusy
from detnas_d2.utils.screen import Line, duration, is_terminal

logger = logging.getLogger("detnas_d2.pipeline")


@dataclass(frozen=True)
class Screen:
    """Where stages are told of.

    Attributes:
        planner: knows how long the stages may take.
        line: the line about progress; None: all progress is shown, as by Detectron2.
        shown: file of the warnings that were shown.
    """

    planner: Planner
    line: Line | None = None
    shown: str = ""
    _known: set[str] = field(default_factory=set)  # folders of stages that were told to be done
    _start: float = field(default_factory=time.monotonic)

    def run(
        self,
        run: Run,
        title: str,
        runs: Sequence[Run],
        args: argparse.Namespace,
        others: Sequence[Run] = (),
        *,
        jobs: int = 1,
        alone: Collection[str] = (),
    ) -> Late | None:
        """Starts or resumes one of ``runs``; see :func:`run_stage`, :func:`outlook_of`.

        Args:
            others: those that are trained together with it.
        """
        self._tell_beginning(run, title)
        estimates = self.planner.estimates()
        outlook = outlook_of(runs, run, estimates, jobs=jobs, alone=alone)
        allowance, stages = self.planner.allowance(run.stage.name), tuple(o.stage for o in others)
        told = Told(title, outlook, self.shown, allowance, others=stages)
        try:
            return run_stage(run.pipeline, run.stage, args, told)
        finally:
            self.clear()

    def begin(self, run: Run, title: str, runs: Sequence[Run], running: Collection[str]) -> Told:
        """Tells that one of ``runs`` begins next to others; what its process has to know.

        Args:
            running: folders of those that run.
        """
        self._tell_beginning(run, title)
        left = [other for other in runs if other is run or other.folder not in running]
        outlook = outlook_of(left, run, self.planner.estimates())
        allowance = self.planner.allowance(run.stage.name)
        return Told(title, outlook, self.shown, allowance, alone=False)

    def _tell_beginning(self, run: Run, title: str) -> None:
        text = f"{title}: {run.stage.kind} {run.stage.config}"
        if self.line is None or not is_terminal(self.line.stream):
            print(text, flush=True)
        else:  # progress takes its place
            self.line.show(lambda: text)

    def show(self, text: Callable[[], str]) -> None:
        """Makes ``text()`` the line about progress, if there is one."""
        if self.line is not None:
            self.line.show(text)

    def clear(self) -> None:
        """Takes the line about progress away."""
        if self.line is not None:
            self.line.clear()

    def tell_end(self, title: str, run: Run) -> None:
        """Of a stage that ended well."""
        self._known.add(run.folder)
        since = duration(time.monotonic() - self._start)
        print(f"{title}: finished{result_text(run)}; {since} since the start", flush=True)

    def tell_done_before(self, title: str, run: Run) -> None:
        """Of a stage that is done, the first time that it is come by."""
        if run.folder not in self._known:
            print(f"{title}: done before", flush=True)
        self._known.add(run.folder)


def tell_failure(title: str, error: Exception) -> None:
    """Of a stage that does not hold up the others; a mistake of the program with its traceback."""
    if isinstance(error, FolderBusy):
        print(error, flush=True)
        return
    if is_expected(error):
        print(f"{title}: failed: {text_of(error)}", flush=True)
    logger.exception("%s failed", title)


def result_text(run: Run) -> str:
    """How long a finished stage took, and what came of it."""
    done = read_json(run.folder, DONE_FILE)
    results = done.get("results", {})
    names = [name for name in (*DEFAULT_METRICS.values(), "fitness") if name in results]
    scores = "".join(f", {name} {results[name]:.2f}" for name in names)
    return f" in {duration(done['seconds'])}{scores}" if "seconds" in done else ""
