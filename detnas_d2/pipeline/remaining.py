"""What is left of an experiment while one of its stages runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from detnas_d2.engine.outlook import Ahead, Outlook, works_of
from detnas_d2.pipeline.experiment import Run
from detnas_d2.pipeline.state import DONE, DONE_FILE, read_json
from detnas_d2.pipeline.status import stage_state


def outlook_of(
    runs: Sequence[Run],
    running: Run,
    estimates: Mapping[str, float] | None = None,
    *,
    jobs: int = 1,
    alone: Collection[str] = (),
) -> Outlook:
    """Work that is left while ``running`` runs, and what the finished stages took.

    Args:
        runs: all stages of all pipelines.
        estimates: name of a stage -> seconds; used if every stage has them.
        jobs: stages that run at a time, but for those that run ``alone`` (folders).
    """
    known = estimates or {}
    estimated = all(run.stage.name in known for run in runs)
    finished: list[tuple[Ahead, float]] = []
    later: list[Ahead] = []
    own, rest = _ahead(running, known if estimated else {})
    for run in runs:
        if run.folder == running.folder:
            continue
        stage, more = _ahead(run, known if estimated else {})
        beside = jobs > 1 and run.folder not in alone
        stage = Ahead(stage.kind, stage.config, stage.work + more, beside)
        if stage_state(run.pipeline, run.stage) != DONE:
            later.append(stage)
        elif seconds := read_json(run.folder, DONE_FILE).get("seconds"):
            finished.append((stage, seconds))
    return Outlook(own, tuple(later), tuple(finished), estimated, rest, jobs)


def _ahead(run: Run, estimates: Mapping[str, float]) -> tuple[Ahead, float]:
    """A stage with the work of its main part, and its work after that."""
    pipeline, stage = run.pipeline, run.stage
    main, rest = works_of(pipeline.begin_of(stage), stage.kind)
    if stage.name in estimates:
        share = main / (main + rest) if main + rest else 1.0
        main, rest = (estimates[stage.name] * part for part in (share, 1.0 - share))
    return Ahead(stage.kind, pipeline.file_of(stage), main), rest
