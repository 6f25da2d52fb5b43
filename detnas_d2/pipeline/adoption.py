"""Stages that go on with another length than they were begun with, or start over.

A stage that was begun with one config is not run with another: it reads "outdated". Here who has
written another length has it go on all the same.
"""

from __future__ import annotations

import os
import shutil

from detnas_d2.pipeline.definition import Pipeline
from detnas_d2.pipeline.stages import Stage
from detnas_d2.pipeline.state import read_json, running
from detnas_d2.pipeline.status import changes, stage_fingerprint
from detnas_d2.search.history import change_generations
from detnas_d2.utils.locks import LOCK_FILE

_REMOVED = ".removed"


def is_of_this_config(pipeline: Pipeline, stage: Stage) -> bool:
    """Whether a stage that was begun and is not done was begun with the config that it has now."""
    mark = read_json(pipeline.folder(stage.name), LOCK_FILE).get("fingerprint")
    return bool(mark == stage_fingerprint(pipeline, stage))


def has_other_length(pipeline: Pipeline, stage: Stage) -> bool:
    """Whether a stage was begun with another config than it has now, which differs in how long and
    by what schedule it learns alone.
    """
    keys = changes(pipeline, stage)
    return bool(keys) and all(key.startswith("SOLVER.") for key in keys)


def adopt(pipeline: Pipeline, stage: Stage) -> None:
    """Lets a stage that was begun go on from where it is, with the length that it has now.

    A training goes on from its last checkpoint; a search keeps its candidates. Called again, it
    ends what a process that was killed has left of it.

    Raises:
        FolderBusy: another process runs it.
    """
    folder = pipeline.folder(stage.name)
    with running(folder, stage_fingerprint(pipeline, stage)):
        if stage.kind == "search":
            change_generations(folder, pipeline.config_of(stage).SEARCH.GENERATIONS)


def start_over(folder: str) -> None:
    """Removes what a stage has done, at once: a process that is killed leaves all or nothing.

    Raises:
        FolderBusy: another process runs it.
    """
    removed = folder + _REMOVED
    shutil.rmtree(removed, ignore_errors=True)  # of a process that was killed
    if os.path.isdir(folder):
        with running(folder, ""):
            os.rename(folder, removed)
    shutil.rmtree(removed, ignore_errors=True)
