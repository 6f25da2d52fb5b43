"""Runs what an experiment is missing: stage by stage, or several side by side."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from detnas_d2.engine.keeping_time import Late
from detnas_d2.pipeline.definition import Pipeline
from detnas_d2.pipeline.experiment import Experiment, Run, read_experiment
from detnas_d2.pipeline.manifest import write_manifest
from detnas_d2.pipeline.shown import Screen, tell_failure
from detnas_d2.pipeline.side_by_side import alone_among, run_side_by_side, titles_of
from detnas_d2.pipeline.state import DONE, FAILED, NOT_STARTED, OUTDATED, STOPPED
from detnas_d2.pipeline.status import outdated, stage_state
from detnas_d2.utils.locks import FolderBusy

AfterStage = Callable[[str], object]
"""Called with an output folder whenever a stage in it has ended, well or not."""


def write_manifests(experiment: Experiment, processes: int | None) -> None:
    """Of all folders of an experiment, see :func:`write_manifest`."""
    for folder, pipelines in experiment.folders.items():
        write_manifest(folder, pipelines, processes)


class Ends:
    """Calls ``after_stage`` with the folders of an experiment."""

    def __init__(self, experiment: Experiment, after_stage: AfterStage | None) -> None:
        self.folders = {
            pipeline.output_dir: folder
            for folder, pipelines in experiment.folders.items()
            for pipeline in pipelines
        }
        self.after_stage = after_stage
        self.untold = dict.fromkeys(experiment.folders)

    def of_stage(self, pipeline: Pipeline) -> None:
        folder = self.folders[pipeline.output_dir]
        self.untold.pop(folder, None)
        if self.after_stage is not None:
            self.after_stage(folder)

    def planned_anew(self, pipeline: Pipeline) -> None:
        """What was told of a folder does not hold any more."""
        self.untold[self.folders[pipeline.output_dir]] = None

    def rest(self) -> None:
        """Of folders where nothing was left to run, or where that was given up."""
        if self.after_stage is not None:
            for folder in self.untold:
                self.after_stage(folder)


class _AllEnd(Exception):
    """A stage was late, and those that run next to it have to end with it."""

    def __init__(self, run: Run, late: Late) -> None:
        super().__init__(run.name)
        self.run, self.late = run, late


class Missing:
    """Runs what is missing of an experiment.

    Attributes:
        experiment: read again when it was planned anew.
        jobs: stages at a time, but for those that run alone.
        goes_on: whether what fails holds up only what starts from it.
        failed: folders of runs that are not tried again.
    """

    def __init__(
        self,
        experiment: Experiment,
        args: argparse.Namespace,
        jobs: int,
        goes_on: bool,
        screen: Screen,
        ends: Ends,
    ) -> None:
        self.experiment, self._args, self._jobs = experiment, args, jobs
        self._goes_on, self._screen, self._ends = goes_on, screen, ends
        self._alone = self._folders_alone()
        self.failed: set[str] = set()

    def run(self) -> Experiment:
        """Runs all of it, as far as it can be; the experiment as it is then."""
        again = True
        while again:
            # What cannot be started is told of by the other.
            again = (self._jobs > 1 and self._run_side_by_side()) or self._run_in_turn()
        return self.experiment

    def _read_again(self) -> Sequence[Run]:
        self.experiment = read_experiment(self._args.config_file, tuple(self._args.opts))
        write_manifests(self.experiment, None)
        self._alone = self._folders_alone()
        return self.experiment.runs()

    def _late(self, run: Run, late: Late) -> Sequence[Run]:
        self._screen.planner.late(run.stage.name, late)
        self._ends.planned_anew(run.pipeline)
        return self._read_again()

    def _ended(self, run: Run, title: str) -> Sequence[Run] | None:
        """After a stage that ended well: the runs from now on, if they were planned anew."""
        self._screen.tell_end(title, run)
        anew = self._read_again() if self._screen.planner.done(run.stage.name) else None
        self._ends.of_stage(run.pipeline)  # what is told then is the new plan
        return anew

    def _failed(self, run: Run, title: str, error: Exception, others: Sequence[Run] = ()) -> None:
        """Tells of it; what another process runs may be done later on.

        Args:
            others: those that were trained together with it.
        """
        self._ends.of_stage(run.pipeline)
        if not self._goes_on:
            raise error
        tell_failure(title, error)
        if not isinstance(error, FolderBusy):
            self.failed.update(each.folder for each in (run, *others))

    def _run_in_turn(self) -> bool:
        """Runs one stage after the other, or with others next to it one; True: there is another
        plan, or what waited for it can run.
        """
        runs, again = self.experiment.runs(), True
        titles = titles_of(runs)
        while again:  # what other processes ran may be done by now
            again = False
            for run in runs:
                title = titles[run.folder]
                if self._goes_on and (run.folder in self.failed or not _is_ready(run)):
                    continue
                state = stage_state(run.pipeline, run.stage)
                if state == OUTDATED:
                    raise outdated(run.pipeline, run.stage)
                if state == DONE:
                    self._screen.tell_done_before(title, run)
                    continue
                others = _together_with(run, runs)
                try:
                    late = self._screen.run(
                        run, title, runs, self._args, others, jobs=self._jobs, alone=self._alone
                    )
                except Exception as error:
                    self._failed(run, title, error, others)
                    continue
                if late is not None:
                    self._late(run, late)
                    return True
                for other in others:
                    self._screen.tell_end(titles[other.folder], other)
                if self._ended(run, title) is not None or self._jobs > 1:
                    return True
                again = self._goes_on
        return False

    def _run_side_by_side(self) -> bool:
        """Runs what may run next to others; True: there is another plan."""

        def ended(
            run: Run, title: str, error: Exception | None, late: Late | None
        ) -> Sequence[Run] | None:
            if error is not None:
                self._failed(run, title, error)
                return None
            if late is None:
                return self._ended(run, title)
            if self._screen.planner.ends_others(run.stage.name):
                raise _AllEnd(run, late)
            return self._late(run, late)

        runs = self.experiment.runs()
        jobs = min(self._jobs, len(runs))
        try:
            run_side_by_side(runs, self._args, jobs, self._screen, self._may_begin, ended)
        except _AllEnd as ending:
            self._late(ending.run, ending.late)
            return True
        return False

    def _may_begin(self, run: Run) -> bool:
        """Whether it is to be started next to others."""
        if run.folder in self.failed or not _is_ready(run):
            return False
        runs = self.experiment.runs()
        before = runs[: [other.folder for other in runs].index(run.folder)]
        waits = any(
            self._screen.planner.alone(other.stage.name)
            and stage_state(other.pipeline, other.stage) != DONE
            for other in before
        )
        return not waits and run.folder not in self._alone

    def _folders_alone(self) -> set[str]:
        """Of those that run alone, where others run side by side."""
        if self._jobs == 1:
            return set()
        runs = self.experiment.runs()
        planned = {run.folder for run in runs if self._screen.planner.alone(run.stage.name)}
        return planned | alone_among(runs)


def _is_ready(run: Run) -> bool:
    """Whether it is to be started or resumed, and what it starts from is done."""
    if stage_state(run.pipeline, run.stage) not in (NOT_STARTED, STOPPED, FAILED):
        return False
    sources = run.pipeline.sources_of(run.stage)
    return all(stage_state(run.pipeline, source) == DONE for source in sources)


def _together_with(run: Run, runs: Sequence[Run]) -> list[Run]:
    """The stages that are trained together with that of a run, and are not done."""
    if not run.stage.together:
        return []
    return [
        other
        for other in runs
        if other is not run
        and other.pipeline is run.pipeline
        and other.stage.together
        and other.stage.row == run.stage.row
        and _is_ready(other)
    ]
