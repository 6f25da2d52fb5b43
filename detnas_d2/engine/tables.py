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
    ROWS:
      - {NAME: "DetNAS", ROW: searched, PAPER: [null, 36.4, 33.3]}

Every pipeline runs once for each of SEEDS (``SEED`` and ``SEARCH.SEED``), in
``OUTPUT_DIR/seed<SEED>/<name>``. A cell is the mean over the networks of a pipeline's ROW and over
the seeds. PIPELINE stands in the column or in the row. METRIC is a result of the stage, ``params``
or ``macs`` (of the backbone, in millions); ``OF: weights`` takes it from the stage whose weights
the network started from. PAPER has a number for each column, null where the paper has none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from detectron2.config import CfgNode

from detnas_d2.engine.pipeline import Pipeline, Stage, read_pipeline
from detnas_d2.engine.pipeline_run import stage_state
from detnas_d2.engine.pipeline_state import DONE
from detnas_d2.engine.pipeline_table import COSTS, mean_and_deviation, measured

_KEYS = {"TITLE", "OUTPUT_DIR", "SEEDS", "PIPELINES", "COLUMNS", "ROWS"}


class TableError(ValueError):
    """A table file that does not say what it should."""


@dataclass(frozen=True)
class Column:
    """``of`` is "" for the network itself, "weights" for the stage it started from."""

    name: str
    metric: str
    pipeline: str = ""
    of: str = ""


@dataclass(frozen=True)
class Row:
    """``row`` names the row of a pipeline; ``paper`` has an entry for each column."""

    name: str
    row: str
    pipeline: str = ""
    paper: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Cell:
    """Values measured so far, and how many networks the cell is to be the mean of."""

    values: tuple[float, ...]
    networks: int
    paper: float | None

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
            if stage is not None and stage_state(pipeline, stage) == DONE:
                value = measured(pipeline, stage, column.metric)
                values += [] if value is None else [value]
        return Cell(tuple(values), networks, row.paper[number] if row.paper else None)

    def _networks(self, row: Row, column: Column) -> Iterator[tuple[Pipeline, Stage | None]]:
        for pipelines in self.pipelines.values():
            pipeline = pipelines[row.pipeline or column.pipeline]
            for stage in pipeline.stages_of(row.row):
                yield pipeline, pipeline.stage(stage.weights) if column.of else stage


def read_table(file: str, opts: tuple[str, ...] = ()) -> Table:
    """Parses and checks a table file and the pipelines that it names.

    Args:
        opts: KEY VALUE overrides for every stage; OUTPUT_DIR is the table's own.

    Raises:
        TableError, PipelineError: naming the file and the key.
    """
    with open(file, encoding="utf-8") as text:
        data = yaml.safe_load(text)
    if not isinstance(data, dict) or not {"PIPELINES", "COLUMNS", "ROWS"} <= set(data) <= _KEYS:
        raise TableError(f"{file}: expected PIPELINES, COLUMNS, ROWS and no others of {_KEYS}")
    pairs = list(zip(opts[::2], opts[1::2], strict=True))
    output = dict(pairs).get("OUTPUT_DIR", data.get("OUTPUT_DIR", "./output/table"))
    rest = tuple(word for pair in pairs if pair[0] != "OUTPUT_DIR" for word in pair)
    columns = tuple(_entry(file, "COLUMNS", Column, entry) for entry in data["COLUMNS"])
    rows = tuple(_entry(file, "ROWS", Row, entry) for entry in data["ROWS"])
    pipelines: dict[int, dict[str, Pipeline]] = {}
    loaded: dict[str, CfgNode] = {}
    for seed in data.get("SEEDS", [0]):
        pipelines[seed] = {}
        for name, path in data["PIPELINES"].items():
            place = os.path.join(output, f"seed{seed}", name)
            seeded = ("SEED", str(seed), "SEARCH.SEED", str(seed), "OUTPUT_DIR", place)
            path = os.path.join(os.path.dirname(file), path)
            pipelines[seed][name] = read_pipeline(path, (*rest, *seeded), loaded)
    table = Table(data.get("TITLE", file), output, columns, rows, pipelines)
    _check(file, table)
    return table


def _entry(file: str, key: str, kind: type, entry: Any) -> Any:
    try:
        values = {name.lower(): value for name, value in entry.items()}
        if "paper" in values:
            values["paper"] = tuple(values["paper"])
        return kind(**values)
    except (AttributeError, TypeError) as error:
        raise TableError(f"{file}: {key}: {entry!r}: {error}") from error


def _check(file: str, table: Table) -> None:
    pipelines = next(iter(table.pipelines.values()))
    for column in table.columns:
        if column.of not in ("", "weights"):
            raise TableError(f"{file}: COLUMNS: OF {column.of!r}, expected weights or nothing")
        if "/" not in column.metric and column.metric not in COSTS:
            raise TableError(
                f"{file}: COLUMNS: METRIC {column.metric!r}, expected task/metric or one of "
                f"{', '.join(COSTS)}"
            )
    for row in table.rows:
        if row.paper and len(row.paper) != len(table.columns):
            raise TableError(
                f"{file}: ROWS: {row.name!r}: PAPER has {len(row.paper)} numbers, the table "
                f"{len(table.columns)} columns"
            )
        for column in table.columns:
            name = row.pipeline or column.pipeline
            if name not in pipelines:
                raise TableError(
                    f"{file}: row {row.name!r}, column {column.name!r}: PIPELINE {name!r}, "
                    f"expected one of {', '.join(pipelines)}"
                )
            if not pipelines[name].stages_of(row.row):
                raise TableError(f"{file}: ROWS: {row.name!r}: no stage of {name} is {row.row!r}")
