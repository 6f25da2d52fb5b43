"""Status of a stage: its state on disk, compared with the config that it would be run with now."""

from __future__ import annotations

import hashlib
import os

from detnas_d2.config.tools import FREE_KEYS, differing_keys, fingerprint, load_config
from detnas_d2.engine.checkpoint import FINAL, has_checkpoints
from detnas_d2.engine.gradient_search import GENOTYPE_FILE, SUB_SPACE_FILE
from detnas_d2.engine.inherited import INHERITED_FILE, member_file
from detnas_d2.engine.plan import BEST_FILE
from detnas_d2.pipeline.definition import Pipeline
from detnas_d2.pipeline.front_scores import MEMBERS_FILE
from detnas_d2.pipeline.stages import PipelineError, Stage
from detnas_d2.pipeline.state import DONE, DONE_FILE, FAILED, OUTDATED, STOPPED, read_json, state_of
from detnas_d2.search.front_file import FRONT_FILE, read_front
from detnas_d2.search.history import HEADER_FILE, RECORDS_FILE, History
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.locks import LOCK_FILE

_LISTED = 5
_WEIGHTS = f"{FINAL}.pth"
_PRODUCTS: dict[str, tuple[str, ...]] = {
    "train": (_WEIGHTS,),
    "evaluate": (),
    "search": (HEADER_FILE, RECORDS_FILE, BEST_FILE),
    "screen": (_WEIGHTS, SUB_SPACE_FILE),
    "gradient": (_WEIGHTS, GENOTYPE_FILE, BEST_FILE),
}


def products(pipeline: Pipeline, stage: Stage) -> tuple[str, ...]:
    """The files without which a stage is not done."""
    files = (MEMBERS_FILE,) if stage.whole else _PRODUCTS[stage.kind]
    if stage.kind == "search" and _has_front(pipeline, stage):
        files = (*files, FRONT_FILE)
    if stage.kind != "search":
        return files
    # A search that ended before it wrote weights is done where nothing starts from them.
    later = [later for later in pipeline.stages if later.weights == stage.name]
    if not all(stage.member or stage.whole for stage in later):
        files = (*files, INHERITED_FILE)
    if any(stage.member or stage.whole for stage in later):
        files = (*files, *_member_files(pipeline.folder(stage.name)))
    return files


def _member_files(folder: str) -> tuple[str, ...]:
    """Of the members of a front; none where ``front.yaml``, another product, is missing."""
    try:
        members = read_front(folder, History.read(folder)).members
    except (OSError, InputError):
        return ()
    return tuple(member_file(number) for number in range(1, len(members) + 1))


def _has_front(pipeline: Pipeline, search: Stage) -> bool:
    try:
        return len(pipeline.config_of(search).SEARCH.OBJECTIVES) > 1
    except (OSError, InputError):  # what a stage before it found is gone
        return False


def stage_state(pipeline: Pipeline, stage: Stage) -> str:
    """A state of :mod:`state`."""
    folder = pipeline.folder(stage.name)
    state = state_of(folder, products(pipeline, stage))
    if state == DONE or (state in (STOPPED, FAILED) and has_checkpoints(folder)):
        mark = read_json(folder, DONE_FILE if state == DONE else LOCK_FILE).get("fingerprint")
        if mark is not None and mark != _fingerprint_now(pipeline, stage):
            return OUTDATED
    return state


def _fingerprint_now(pipeline: Pipeline, stage: Stage) -> str:
    try:
        return stage_fingerprint(pipeline, stage)
    except (OSError, PipelineError):  # what a stage before it found is gone
        return ""


def outdated(pipeline: Pipeline, stage: Stage) -> PipelineError:
    """The error that explains the state OUTDATED."""
    keys = changes(pipeline, stage)
    what = f"another config ({', '.join(keys)})" if keys else "another config of a stage before it"
    return PipelineError(
        f"stage {stage.name!r} was run with {what}; use another OUTPUT_DIR, or delete "
        f"{pipeline.folder(stage.name)} to run it again"
    )


def changes(pipeline: Pipeline, stage: Stage) -> list[str]:
    """Texts "KEY: then -> now", the first of them, of what a stage was begun with and has now."""
    try:
        then = load_config(os.path.join(pipeline.folder(stage.name), "config.yaml"))
        keys = differing_keys(then, pipeline.config_of(stage), _ignored(pipeline, stage))
    except (AssertionError, KeyError, OSError, ValueError):  # of another version, or incomplete
        return []
    return keys[:_LISTED] + (["..."] if len(keys) > _LISTED else [])


def stage_fingerprint(pipeline: Pipeline, stage: Stage) -> str:
    """Of a stage's config and those of the stages that it starts from."""
    own = fingerprint(pipeline.config_of(stage), _ignored(pipeline, stage))
    sources = [stage_fingerprint(pipeline, source) for source in pipeline.sources_of(stage)]
    return hashlib.sha256("/".join([own, *sources]).encode()).hexdigest()


def _ignored(pipeline: Pipeline, stage: Stage) -> list[str]:
    """Keys and nodes that do not alter what a stage does."""
    ignored = [*FREE_KEYS, "SUPERNET.CHECK"]
    if pipeline.stage(stage.weights) is not None:
        ignored.append("MODEL.WEIGHTS")
    if stage.kind == "train":  # another search of the same supernet does not train it again
        ignored.append("SEARCH")
    if stage.kind == "evaluate":
        ignored += ["SEARCH", "SOLVER"]
    return ignored
