"""Checks of a pipeline as it is read, without building a model or looking at data."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from detnas_d2.engine.plan import GradientPlan, SearchPlan
from detnas_d2.pipeline.stages import PipelineError, Stage

if TYPE_CHECKING:
    from detnas_d2.pipeline.definition import Pipeline


def check_config(pipeline: Pipeline, stage: Stage) -> None:
    """Finds errors in the config of a stage before the first stage has run for days.

    Raises:
        PipelineError: naming the file, the stage and what is wrong.
    """
    name = pipeline.file_of(stage)
    try:
        cfg = pipeline.begin_of(stage)
        screened = any(source.kind == "screen" for source in pipeline.sources_of(stage))
        if stage.like and not screened:  # the path is drawn when the search is done
            pipeline.random_proposals(stage, cfg)
        elif stage.path and pipeline.stage(stage.path) is None and not screened:
            pipeline.path_of(stage, cfg)
        if stage.member or stage.whole:
            _check_front(pipeline, stage)
        if stage.whole and (stage.row or stage.name) in pipeline.table:
            raise PipelineError(
                "a whole front is no row of TABLE; expected REPEAT, so many members"
            )
        retrain = os.path.dirname(name), pipeline.opts
        if stage.kind == "search" and not stage.merge:
            SearchPlan.from_config(cfg, *retrain).check(data=False)
        if stage.kind == "gradient":
            GradientPlan.from_config(cfg, *retrain)
    except (KeyError, ValueError, OSError) as error:
        raise PipelineError(f"{pipeline.file}: stage {stage.name!r}: {error}") from error


def check_baselines(pipeline: Pipeline) -> None:
    """A front in a table without other networks shows nothing.

    Raises:
        PipelineError: naming a row that is missing.
    """
    rows = [stage for row in pipeline.table for stage in pipeline.stages_of(row)]
    members = [stage for stage in rows if stage.member and not stage.like]
    if members and all(pipeline.stage(stage.path) for stage in rows):
        raise PipelineError(
            f"{pipeline.file}: TABLE has members of a front ({members[0].row or members[0].name}) "
            "and nothing to compare them with; add a row of PATH: random with LIKE: front "
            f"{members[0].path}, or of PATH: uniform OP"
        )


def _check_front(pipeline: Pipeline, stage: Stage) -> None:
    """Whether the search whose front a stage starts from has one."""
    search = pipeline.known_stage(stage.like or stage.path)
    objectives = pipeline.begin_of(search).SEARCH.OBJECTIVES
    if len(objectives) < 2:
        raise PipelineError(
            f"a member of the front of {search.name!r}, whose SEARCH.OBJECTIVES are {objectives}: "
            "expected costs too, e.g. ['fitness', 'macs']"
        )
