"""What an output folder holds: the stages of its runs, as far as they have come.

The manifest of a pipeline names them (:mod:`detnas_d2.pipeline.manifest`). Without one, as in the
folder of a single search, they are told by their files.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from detectron2.config import CfgNode

from detnas_d2.config.tools import load_config
from detnas_d2.engine.architectures import is_relaxed
from detnas_d2.engine.checkpoint import FINAL
from detnas_d2.engine.gradient_search import GENOTYPE_FILE, SCREENING_FILE, SUB_SPACE_FILE
from detnas_d2.evaluation import CandidateRecord
from detnas_d2.pipeline.manifest import GIVEN, MANIFEST_FILE, RANDOM, SEARCHED
from detnas_d2.pipeline.state import DONE_FILE, NOT_STARTED, read_done, read_json, state_of
from detnas_d2.search.front_file import best_of, has_front, read_front
from detnas_d2.search.history import HEADER_FILE, RECORDS_FILE, History
from detnas_d2.utils.errors import InputError

CONFIG_FILE, METRICS_FILE = "config.yaml", "metrics.json"
_MARKS = (CONFIG_FILE, DONE_FILE, RECORDS_FILE, METRICS_FILE)
METRICS = ("bbox/AP", "bbox/AP50", "classification/top1")
"""Of networks, as in a pipeline's table; the first that a network has is its main one."""


@dataclass(frozen=True)
class FoundStage:
    """A stage of a run.

    Attributes:
        row: of the table.
        origin: of its network's architecture, see :mod:`detnas_d2.pipeline.manifest`.
        seed: of the run, None where there is one.
    """

    name: str
    kind: str
    row: str
    origin: str
    seed: int | None
    folder: str

    @property
    def title(self) -> str:
        return self.name if self.seed is None else f"seed {self.seed}: {self.name}"

    @cached_property
    def state(self) -> str:
        return state_of(self.folder)

    @cached_property
    def done(self) -> dict[str, Any]:
        """``done.json``, empty before."""
        return read_done(self.folder, ())

    @property
    def results(self) -> dict[str, Any]:
        return self.done.get("results", {})

    def result(self, key: str) -> float | None:
        """A finite result; None without."""
        value = self.results.get(key)
        if isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
        return None

    @property
    def architecture(self) -> str:
        """Text of the network's path or genotype; "" for none."""
        return self.done.get("path", "")

    @property
    def fitness_metric(self) -> str:
        """What the fitness of a search's candidates is; "score" where it is not known."""
        told = read_json(self.folder, HEADER_FILE).get("fingerprint")
        return str(told.get("metric", "score")) if isinstance(told, dict) else "score"

    @property
    def is_network(self) -> bool:
        """Whether it ended with a network and its scores."""
        return self.kind in ("train", "evaluate") and any(key in self.results for key in METRICS)

    @property
    def config(self) -> CfgNode:
        """Its whole config, a copy.

        Raises:
            InputError: it has none, or one that cannot be read.
        """
        return _config(os.path.join(self.folder, CONFIG_FILE)).clone()

    @cached_property
    def history(self) -> tuple[CandidateRecord, ...]:
        """Candidates of a search so far; none of any other stage.

        Raises:
            InputError: a damaged history.
        """
        if not os.path.isfile(os.path.join(self.folder, RECORDS_FILE)):
            return ()
        return History.read(self.folder).records

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Lines of ``metrics.json`` in order of iterations; a torn one is left out."""
        return read_lines(os.path.join(self.folder, METRICS_FILE))

    def file(self, *names: str) -> str:
        return os.path.join(self.folder, *names)


@dataclass(frozen=True)
class Found:
    """The runs in ``folder``.

    Attributes:
        table, compare: rows of the pipeline's table, and those whose differences are told.
        starts: of the manifest.
        pipeline: file that the stages are of, "" where that is not known.
    """

    folder: str
    stages: tuple[FoundStage, ...]
    table: tuple[str, ...] = ()
    compare: tuple[str, ...] = ()
    starts: tuple[dict[str, Any], ...] = ()
    pipeline: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def places(self) -> list[str]:
        """The folder, and those next below: where outputs of ``diagnose.py`` may lie."""
        return [self.folder, *(os.path.join(self.folder, name) for name in _folders(self.folder))]

    @property
    def seeds(self) -> list[int]:
        """Of several runs; empty where there is one."""
        found = dict.fromkeys(stage.seed for stage in self.stages)
        return [seed for seed in found if seed is not None]

    @property
    def networks(self) -> list[FoundStage]:
        return [stage for stage in self.stages if stage.is_network]

    def of_kind(self, *kinds: str, seed: int | None = None) -> list[FoundStage]:
        """Begun stages of these kinds; of all runs, or of one seed's."""
        return [
            stage
            for stage in self.stages
            if stage.kind in kinds and (seed is None or stage.seed == seed) and _has_begun(stage)
        ]


def _has_begun(stage: FoundStage) -> bool:
    return stage.state != NOT_STARTED or any(os.path.exists(stage.file(mark)) for mark in _MARKS)


def read_folder(folder: str) -> Found:
    """What is in an output folder.

    Raises:
        InputError: there is no such folder, or nothing of this project in it.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder; expected the OUTPUT_DIR of a run")
    manifest = read_json(folder, MANIFEST_FILE)
    try:
        found = _of_manifest(folder, manifest) if manifest else None
    except (KeyError, TypeError, ValueError, AttributeError):
        found = None
    if found is None:
        found = Found(folder, tuple(_with_origins(_discovered(folder))))
        if os.path.exists(os.path.join(folder, MANIFEST_FILE)):
            found.problems.append(f"{MANIFEST_FILE} is damaged: rows are told by names of folders")
    if not any(_has_begun(stage) for stage in found.stages):
        raise InputError(
            f"{folder}: nothing to report yet; expected the OUTPUT_DIR of a pipeline, a search or "
            "a training that has begun"
        )
    return found


def _of_manifest(folder: str, manifest: dict[str, Any]) -> Found:
    stages = tuple(
        FoundStage(
            str(entry["name"]),
            str(entry["kind"]),
            str(entry["row"]),
            str(entry["origin"]),
            run["seed"],
            os.path.normpath(os.path.join(folder, run["folder"], entry["folder"])),
        )
        for run in manifest["runs"]
        for entry in manifest["stages"]
    )
    return Found(
        folder,
        stages,
        tuple(manifest["table"]),
        tuple(manifest["compare"]),
        tuple(start for start in manifest["starts"] if isinstance(start, dict)),
        str(manifest["file"]),
    )


def _discovered(folder: str) -> Iterator[FoundStage]:
    if _is_stage(folder):
        yield _stage(os.path.basename(os.path.abspath(folder)), None, folder)
        return
    runs = {}
    for name in _folders(folder):
        number = name.removeprefix("seed")
        if name != number and number.isdecimal():
            runs[int(number)] = os.path.join(folder, name)
    places: list[tuple[int | None, str]] = [*sorted(runs.items())] or [(None, folder)]
    for seed, run in places:
        stages = [os.path.join(run, name) for name in _folders(run)]
        for place in sorted(filter(_is_stage, stages), key=_ended):
            yield _stage(os.path.basename(place), seed, place)


def _folders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def _is_stage(folder: str) -> bool:
    return any(os.path.isfile(os.path.join(folder, mark)) for mark in _MARKS)


def _ended(folder: str) -> tuple[float, str]:
    """Sort key: what has not ended comes last."""
    try:
        return os.path.getmtime(os.path.join(folder, DONE_FILE)), folder
    except OSError:
        return float("inf"), folder


def _stage(name: str, seed: int | None, folder: str) -> FoundStage:
    def has(file: str) -> bool:
        return os.path.exists(os.path.join(folder, file))

    if has(HEADER_FILE) or has(RECORDS_FILE):
        kind = "search"
    elif has(GENOTYPE_FILE):
        kind = "gradient"
    elif has(SUB_SPACE_FILE) or has(SCREENING_FILE):
        kind = "screen"
    elif has("inference") and not has(METRICS_FILE) and not has(f"{FINAL}.pth"):
        kind = "evaluate"
    else:
        kind = _relaxed_kind(folder) or "train"
    head, _, number = name.rpartition("_")
    row = head if head and number.isdecimal() else name
    return FoundStage(name, kind, row, GIVEN, seed, folder)


def _relaxed_kind(folder: str) -> str:
    """Kind of a screening or a search by gradient that has no result yet; "" of any other stage."""
    try:
        cfg = _config(os.path.join(folder, CONFIG_FILE))
    except InputError:
        return ""
    if not is_relaxed(cfg):
        return ""
    return "screen" if cfg.HIT_SEARCH.SCREENING.ENABLED else "gradient"


def _with_origins(stages: Iterable[FoundStage]) -> list[FoundStage]:
    """Told by names, and by what the searches of the same run found."""
    stages = list(stages)
    best: dict[int | None, set[str]] = {}
    for stage in stages:
        found = best.setdefault(stage.seed, set())
        if stage.kind == "gradient":
            found.add(str(stage.results.get("genotype", "")))
        elif stage.kind == "search":
            found.update(record.path for record in _found_by(stage))
    return [
        FoundStage(s.name, s.kind, s.row, _origin(s, best[s.seed] - {""}), s.seed, s.folder)
        for s in stages
    ]


def _origin(stage: FoundStage, searched: set[str]) -> str:
    if stage.row == "random":
        return RANDOM
    return SEARCHED if stage.architecture in searched else GIVEN


def _found_by(search: FoundStage) -> tuple[CandidateRecord, ...]:
    """The front of a search, or its best; none where its files are damaged."""
    try:
        if has_front(search.folder):
            return read_front(search.folder, search.history).members
    except InputError:
        return ()
    best = best_record(search)
    return () if best is None else (best,)


def best_record(stage: FoundStage) -> CandidateRecord | None:
    """What a search found, so far if it runs (:func:`best_of`); None where its files are damaged,
    too, which is told where the search is shown.
    """
    try:
        return best_of(stage.folder, stage.history)
    except InputError:
        return None


def read_lines(file: str) -> list[dict[str, Any]]:
    """Objects of a file with one JSON value a line, by "iteration"; other lines are left out.

    A training that was resumed writes an iteration again: the last one counts.
    """

    found: dict[Any, dict[str, Any]] = {}
    try:
        with open(file, encoding="utf-8", errors="replace") as text:
            for line in text:
                try:
                    value = json.loads(line)
                except ValueError:
                    continue
                if isinstance(value, dict) and isinstance(value.get("iteration"), int):
                    found.setdefault(value["iteration"], {}).update(value)
    except OSError:
        return []
    return [found[iteration] for iteration in sorted(found)]


def _config(file: str) -> CfgNode:
    try:
        status = os.stat(file)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    return _read_config(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _read_config(file: str, changed: int, size: int) -> CfgNode:
    """Read once as long as it does not change."""
    return load_config(file)
