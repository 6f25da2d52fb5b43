"""A table of a paper: which stages of which pipelines are its cells, and what they measured.

.. code-block:: yaml

    TITLE: "DetNAS, table 4"
    OUTPUT_DIR: ./output/table4
    SEEDS: [0]
    PIPELINES:
      fpn: ../pipeline_300M_fpn_coco.yaml
      retinanet: ../pipeline_300M_retinanet_coco.yaml
    COLUMNS:
      - {NAME: "top-1", PIPELINE: fpn, METRIC: classification/top1, OF: weights}
      - {NAME: "FPN AP", PIPELINE: fpn, METRIC: bbox/AP}
      - {NAME: "RetinaNet AP", PIPELINE: retinanet, METRIC: bbox/AP}
    REFERENCES: {PAPER: "arXiv 1903.10979 v1, table 4"}
    ROWS:
      - {NAME: "DetNAS", ROW: searched, PAPER: [null, 36.4, 33.3]}
      - {NAME: "another method", PAPER: [null, 35.0, null]}

Every pipeline runs once for each of SEEDS (``SEED`` and ``SEARCH.SEED``), in
``OUTPUT_DIR/seed<SEED>/<name>``. A cell is the mean over the networks of a pipeline's ROW and over
the seeds. PIPELINE stands in the column or in the row. METRIC is a result of the stage, or one of
``params`` and ``macs`` (of the backbone, in millions), ``iterations`` (of a search: candidates),
``gpus`` (processes) and ``days``; ``OF: weights`` takes it from the stage whose weights the network
started from. A row without ROW is one that this project does not build, a column without METRIC one
that only others fill, which needs no runs. ``detector_params``, ``backbone_params``,
``neck_params``, ``head_params`` (in millions) and ``detector_flops`` (in 1e9, for an image of the
row's INPUT) need none either: they are counted from the config, see :mod:`detector_cost`.

REFERENCES names where numbers of others are from. A row has a list under each of these names, with
an entry for each column: a number or a text as printed there, null where nothing is printed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from detnas_d2.analysis.detector_cost import DETECTOR_COSTS, INPUT, detector_cost
from detnas_d2.config.reading import read_yaml
from detnas_d2.pipeline.definition import Pipeline, Stage, read_pipeline
from detnas_d2.pipeline.report import METRICS, mean_and_deviation, measured
from detnas_d2.pipeline.run import stage_state
from detnas_d2.pipeline.state import DONE
from detnas_d2.utils.errors import InputError

_KEYS = {"TITLE", "OUTPUT_DIR", "SEEDS", "PIPELINES", "REFERENCES", "COLUMNS", "ROWS"}

Reference = float | str | None
"""A number of others, or the text that they print in its place."""


class TableError(InputError):
    """A table file that does not say what it should."""


@dataclass(frozen=True)
class Column:
    """``of`` is "" for the network itself, "weights" for the stage it started from.

    ``metric`` is "" if there are numbers of others only.
    """

    name: str
    metric: str = ""
    pipeline: str = ""
    of: str = ""


@dataclass(frozen=True)
class Row:
    """``row`` names the row of a pipeline, "" for none.

    ``input`` is the image (height, width) of ``detector_flops``; ``references`` has, for each name
    of a reference, an entry for each column.
    """

    name: str
    row: str = ""
    pipeline: str = ""
    input: tuple[int, int] = INPUT
    references: dict[str, tuple[Reference, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """Values measured so far, and how many networks the cell is to be the mean of.

    ``references`` has the numbers of others, by the name of the reference.
    """

    values: tuple[float, ...]
    networks: int
    references: dict[str, Reference] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        return mean_and_deviation(self.values)[0] if self.values else None

    @property
    def deviation(self) -> float:
        """Standard deviation over the networks."""
        return mean_and_deviation(self.values)[1]


@dataclass(frozen=True)
class Run:
    """A stage of a table; stages that several pipelines share are one run."""

    name: str
    pipeline: Pipeline
    stage: Stage

    @property
    def folder(self) -> str:
        return self.pipeline.folder(self.stage.name)


@dataclass(frozen=True)
class Table:
    """A parsed table file with its pipelines, by name, for each seed."""

    title: str
    output_dir: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    pipelines: dict[int, dict[str, Pipeline]]
    references: dict[str, str] = field(default_factory=dict)

    def runs(self) -> list[Run]:
        """Every stage once, each after those that it starts from."""
        found: dict[str, Run] = {}
        for seed, pipelines in self.pipelines.items():
            for name, pipeline in pipelines.items():
                for stage in pipeline.stages:
                    run = Run(f"seed {seed}, {name}: {stage.name}", pipeline, stage)
                    found.setdefault(run.folder, run)
        return list(found.values())

    def cell(self, row: Row, column: Column, number: int) -> Cell:
        """The cell of a row in the column with this number."""
        values, networks = [], 0
        for pipeline, stage in self._networks(row, column):
            networks += 1
            if stage is None:
                continue
            if column.metric in DETECTOR_COSTS:
                value = _counted(pipeline, stage, row, column)
            elif stage_state(pipeline, stage) == DONE:
                value = measured(pipeline, stage, column.metric)
            else:
                value = None
            values += [] if value is None else [value]
        found = {name: numbers[number] for name, numbers in row.references.items()}
        return Cell(tuple(values), networks, found)

    def _networks(self, row: Row, column: Column) -> Iterator[tuple[Pipeline, Stage | None]]:
        for pipelines in self.pipelines.values() if row.row and column.metric else ():
            pipeline = pipelines[row.pipeline or column.pipeline]
            for stage in pipeline.stages_of(row.row):
                yield pipeline, pipeline.stage(stage.weights) if column.of else stage


def _counted(pipeline: Pipeline, stage: Stage, row: Row, column: Column) -> float | None:
    """A cost of the stage's detector; None as long as a search is to tell its operations."""
    sources = [pipeline.stage(name) for name in (stage.path, *stage.merge)]
    missing = [s for s in sources if s is not None and stage_state(pipeline, s) != DONE]
    if missing:
        return None
    return detector_cost(pipeline.config_of(stage), column.metric, row.input)


def read_table(file: str, opts: tuple[str, ...] = ()) -> Table:
    """Parses and checks a table file and the pipelines that it names.

    Args:
        opts: KEY VALUE overrides for every stage; OUTPUT_DIR is the table's own.

    Raises:
        TableError, PipelineError: naming the file and the key.
    """
    data = read_yaml(file).data
    if not isinstance(data, dict) or not {"PIPELINES", "COLUMNS", "ROWS"} <= set(data) <= _KEYS:
        raise TableError(
            f"{file}: expected PIPELINES, COLUMNS, ROWS and no others of {', '.join(sorted(_KEYS))}"
        )
    references = data.get("REFERENCES", {})
    texts = isinstance(references, dict) and [*references, *references.values()]
    if texts is False or not all(isinstance(text, str) for text in texts):
        raise TableError(f"{file}: REFERENCES: expected NAME: where its numbers are from")
    pairs = list(zip(opts[::2], opts[1::2], strict=True))
    output = dict(pairs).get("OUTPUT_DIR", data.get("OUTPUT_DIR", "./output/table"))
    rest = tuple(word for pair in pairs if pair[0] != "OUTPUT_DIR" for word in pair)
    columns = tuple(_entry(file, "COLUMNS", Column, entry) for entry in data["COLUMNS"])
    rows = tuple(_row(file, entry, references, len(columns)) for entry in data["ROWS"])
    pipelines: dict[int, dict[str, Pipeline]] = {}
    for seed in data.get("SEEDS", [0]):
        pipelines[seed] = {}
        for name, path in data["PIPELINES"].items():
            place = os.path.join(output, f"seed{seed}", name)
            seeded = ("SEED", str(seed), "SEARCH.SEED", str(seed), "OUTPUT_DIR", place)
            path = os.path.join(os.path.dirname(file), path)
            pipelines[seed][name] = read_pipeline(path, (*rest, *seeded))
    table = Table(data.get("TITLE", file), output, columns, rows, pipelines, references)
    _check(file, table)
    return table


def _entry(file: str, key: str, kind: type, entry: Any) -> Any:
    try:
        return kind(**{name.lower(): value for name, value in entry.items()})
    except (AttributeError, TypeError) as error:
        raise TableError(f"{file}: {key}: {entry!r}: {error}") from error


def _row(file: str, entry: Any, references: dict[str, str], columns: int) -> Row:
    if not isinstance(entry, dict):
        raise TableError(f"{file}: ROWS: {entry!r}, expected NAME and ROW")
    found: dict[str, tuple[Reference, ...]] = {}
    for name in [key for key in entry if key in references]:
        numbers = entry[name]
        if not isinstance(numbers, list) or len(numbers) != columns:
            has = f"has {len(numbers)} numbers" if isinstance(numbers, list) else "is no list"
            raise TableError(
                f"{file}: ROWS: {entry.get('NAME')!r}: {name} {has}, the table {columns} columns"
            )
        found[name] = tuple(numbers)
    rest = {key: value for key, value in entry.items() if key not in references}
    if isinstance(rest.get("INPUT"), list):
        rest["INPUT"] = tuple(rest["INPUT"])
    return _entry(file, "ROWS", Row, {**rest, "REFERENCES": found})


def _check(file: str, table: Table) -> None:
    pipelines = next(iter(table.pipelines.values()))
    for column in table.columns:
        if column.of not in ("", "weights"):
            raise TableError(f"{file}: COLUMNS: OF {column.of!r}, expected weights or nothing")
        known = (*METRICS, *DETECTOR_COSTS)
        if column.metric and "/" not in column.metric and column.metric not in known:
            raise TableError(
                f"{file}: COLUMNS: METRIC {column.metric!r}, expected task/metric or one of "
                f"{', '.join(known)}"
            )
    for row in table.rows:
        size = row.input
        sides = size if isinstance(size, tuple) else ()
        if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
            raise TableError(f"{file}: ROWS: {row.name!r}: INPUT {size}, expected [height, width]")
    for row in (row for row in table.rows if row.row):
        for column in (column for column in table.columns if column.metric):
            name = row.pipeline or column.pipeline
            if name not in pipelines:
                raise TableError(
                    f"{file}: row {row.name!r}, column {column.name!r}: PIPELINE {name!r}, "
                    f"expected one of {', '.join(pipelines)}"
                )
            if not pipelines[name].stages_of(row.row):
                raise TableError(f"{file}: ROWS: {row.name!r}: no stage of {name} is {row.row!r}")
