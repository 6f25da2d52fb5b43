"""The data that finished stages were run on: kept in ``done.json``, compared when a pipeline goes
on.

A stage that is not finished compares its own: a training with its checkpoint, a search with its
history.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection
from typing import Any

from detectron2.config import CfgNode

from detnas_d2.config.tools import flatten
from detnas_d2.data import DataState, data_changes, data_state, register_datasets
from detnas_d2.engine.checks.data import ClassList, class_list, training_sets
from detnas_d2.evaluation.settings import EvaluationSettings
from detnas_d2.pipeline.definition import Pipeline
from detnas_d2.pipeline.stages import PipelineError, Stage
from detnas_d2.pipeline.state import DONE_FILE, read_json
from detnas_d2.utils.errors import InputError

logger = logging.getLogger(__name__)


def data_of(cfg: CfgNode, kind: str) -> dict[str, Any]:
    """State of the data that a stage of ``kind`` begins with, for ``done.json``, on rank 0."""
    if kind == "search":
        names: Collection[str] = EvaluationSettings.from_config(cfg).datasets
    else:
        names = cfg.DATASETS.TEST if kind == "evaluate" else training_sets(cfg)
    return {"data": data_state(names), "classes": class_list(cfg)}


def read_classes(folder: str) -> ClassList | None:
    """The classes of the finished stage in ``folder``; None where they are not known."""
    try:
        stored: Any = read_json(folder, DONE_FILE).get("classes")
        head, setting, name, classes = stored
        return ClassList(head, setting, name, tuple(classes))
    except (TypeError, ValueError):
        return None


def check_data(pipeline: Pipeline, done: Collection[str]) -> None:
    """Compares the data of the stages ``done`` with those that they were run on.

    Data that cannot be read any more, as of a pre-training that is long over, are warned of.

    Raises:
        PipelineError: naming what changed, the stages that used it, and what to delete.
    """
    changes: dict[str, list[str]] = {}  # text -> stages
    changed: dict[str, set[str]] = {}  # stage -> datasets
    found: dict[str, DataState] = {}
    for stage in pipeline.stages:
        then = _data_then(pipeline, stage) if stage.name in done else {}
        now = _data_now(pipeline, stage, then, found) if then else {}
        for name in sorted(now):
            for text in data_changes({name: now[name]}, {name: then[name]}):
                changes.setdefault(text, []).append(stage.name)
                changed.setdefault(stage.name, set()).add(name)
    if changes:
        told = "; ".join(f"{text} (stage {', '.join(names)})" for text, names in changes.items())
        raise PipelineError(
            f"{pipeline.file}: data changed since stages were done: {told}; restore the data, use "
            f"another OUTPUT_DIR, or delete {', '.join(_outdated(pipeline, changed))}"
        )


def _data_then(pipeline: Pipeline, stage: Stage) -> DataState:
    data = read_json(pipeline.folder(stage.name), DONE_FILE).get("data")
    if isinstance(data, dict) and all(isinstance(d, dict) for d in data.values()):
        return data
    return {}


def _data_now(
    pipeline: Pipeline, stage: Stage, then: DataState, found: dict[str, DataState]
) -> DataState:
    """State of the datasets in ``then``; ``found`` keeps it for stages with the same data."""
    cfg = pipeline.config_of(stage)
    key = json.dumps([flatten(cfg.DATASETS), sorted(then)], default=str)
    try:
        if key not in found:
            register_datasets(cfg, then)
            found[key] = data_state(then)
        return found[key]
    except (InputError, OSError) as error:
        logger.warning(
            "%s: stage %r is done; whether its data changed since cannot be told: %s",
            pipeline.file,
            stage.name,
            error,
        )
        return {}


def _outdated(pipeline: Pipeline, changed: dict[str, set[str]]) -> list[str]:
    """Places to delete so that stages run again, with those that start from them; of a network
    that was only tested on what changed, its results alone.
    """
    places: list[str] = []
    again: set[str] = set()
    for stage in pipeline.stages:
        folder, names = pipeline.folder(stage.name), changed.get(stage.name, set())
        learns = (
            stage.kind != "evaluate"
            and bool(names)
            and (
                stage.kind != "train" or bool(names & set(training_sets(pipeline.config_of(stage))))
            )
        )
        if learns or any(source.name in again for source in pipeline.sources_of(stage)):
            again.add(stage.name)
            places += [folder] if os.path.isdir(folder) else []
        elif names:
            places.append(os.path.join(folder, DONE_FILE))
    return places
