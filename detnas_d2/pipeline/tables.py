"""Tables of a paper: which stages are the cells, what they measure, and what others report.

.. code-block:: yaml

    TABLES:
      - TITLE: "DetNAS, table 4"
        REFERENCES: {PAPER: "arXiv 1903.10979 v1, table 4"}
        COLUMNS:
          - {NAME: "top-1", PIPELINE: fpn, METRIC: classification/top1, OF: weights}
          - {NAME: "FPN AP", PIPELINE: fpn, METRIC: bbox/AP}
          - {NAME: "RetinaNet AP", PIPELINE: retinanet, METRIC: bbox/AP}
        ROWS:
          - {NAME: "DetNAS", ROW: searched, PAPER: [null, 36.4, 33.3]}
          - {NAME: "another method", PAPER: [null, 35.0, null]}

A cell is the mean over the networks of a pipeline's ROW and over the seeds. PIPELINE stands in the
column or in the row, where the file names several pipelines (:mod:`experiment`). METRIC is a
result of the stage, or one of ``params`` and ``macs`` (of the backbone, in millions),
``iterations`` (of a search: candidates), ``gpus`` (processes) and ``days``; ``OF: weights`` takes
it from the stage whose weights the network started from. A row without ROW is one that this project
does not build, a column without METRIC one that only others fill, which needs no runs.
``detector_params``, ``backbone_params``, ``neck_params``, ``head_params`` (in millions) and
``detector_flops`` (in 1e9, for an image of the row's INPUT) need none either: they are counted from
the config, see :mod:`detector_cost`.

Below a table stand the differences between rows in what was measured (:mod:`differences`): of the
row that COMPARE names, or of those that it lists, to all others; of the first by default.

PLOT names the columns of a figure, see :mod:`table_plots`.

REFERENCES names where numbers of others are from. A row has a list under each of these names, with
an entry for each column: a number or a text as printed there, null where nothing is printed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from detnas_d2.analysis.detector_cost import DETECTOR_COSTS, INPUT, detector_cost
from detnas_d2.pipeline.definition import Pipeline
from detnas_d2.pipeline.differences import Difference, differences, format_differences
from detnas_d2.pipeline.report import mean_and_deviation, measured, seed_of, unit_of
from detnas_d2.pipeline.stages import Stage
from detnas_d2.pipeline.state import DONE
from detnas_d2.pipeline.status import stage_state
from detnas_d2.utils.errors import InputError

Reference = float | str | None
"""A number of others, or the text that they print in its place."""
Pipelines = Mapping[int | None, Mapping[str, Pipeline]]
"""Seed -> name -> pipeline; one seed, None, where a file has no SEEDS."""


class TableError(InputError):
    """A table that does not say what it should."""


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
class Plot:
    """Names of the columns of a figure; without ``x`` the rows stand side by side."""

    y: str
    x: str = ""


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

    def __str__(self) -> str:
        """Mean, spread and number of networks of what was measured; "" for nothing."""
        if self.mean is None:
            return ""
        found = len(self.values)
        count = str(found) if found == self.networks else f"{found} of {self.networks}"
        spread = f" ± {self.deviation:.2f}" if found > 1 else ""
        whole = all(isinstance(value, int) for value in self.values) and not self.deviation
        mean = f"{self.mean:.0f}" if whole else f"{self.mean:.2f}{spread}"
        return mean + (f" ({count})" if self.networks > 1 else "")


@dataclass(frozen=True)
class Table:
    """A parsed table and the pipelines that it is of; ``compare`` has names of rows."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    references: dict[str, str]
    pipelines: Pipelines
    compare: tuple[str, ...] = ()
    plot: Plot | None = None

    def column(self, name: str) -> int:
        """Number of the column of this name."""
        return [column.name for column in self.columns].index(name)

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

    def differences(self) -> list[Difference]:
        """Between rows, in the results that are there for all networks of both of a seed."""
        samples = {
            row.name: {
                column.name: sample
                for column in self.columns
                if "/" in column.metric and (sample := self._sample(row, column))
            }
            for row in self.rows
        }
        return list(differences(samples, self.compare, unit_of(len(self.pipelines))))

    def _sample(self, row: Row, column: Column) -> dict[int, list[float]]:
        found: dict[int, list[float | None]] = {}
        for pipeline, stage in self._networks(row, column):
            if stage is not None:
                done = stage_state(pipeline, stage) == DONE
                value = measured(pipeline, stage, column.metric) if done else None
                seed = seed_of(pipeline, stage, len(self.pipelines))
                found.setdefault(seed, []).append(value)
        return {
            seed: [value for value in values if value is not None]
            for seed, values in found.items()
            if None not in values
        }

    def text(self) -> str:
        """The table in Markdown, the numbers of others next to the measured ones.

        ``±`` is the standard deviation over the networks, whose number follows; "2 of 3" tells that
        some are missing. A cell without measurement is empty, or "not built".
        """
        cells = [
            [self.cell(row, column, number) for number, column in enumerate(self.columns)]
            for row in self.rows
        ]
        head: list[str] = ["network"]
        lines = [[row.name] for row in self.rows]
        for number, column in enumerate(self.columns):
            entries = [row[number] for row in cells]
            found = [
                name
                for name in self.references
                if any(cell.references.get(name) is not None for cell in entries)
            ]
            for name in found:
                head.append(f"{column.name}, {name.lower()}")
                for line, cell in zip(lines, entries, strict=True):
                    line.append(_printed(cell.references.get(name)))
            if not column.metric:
                continue
            how = "counted" if column.metric in DETECTOR_COSTS else "measured"
            head.append(f"{column.name}, {how}" if found else column.name)
            for line, row, cell in zip(lines, self.rows, entries, strict=True):
                line.append(str(cell) if row.row else "not built")
        body = [head, ["---"] * len(head), *lines]
        text = "\n".join("| " + " | ".join(line) + " |" for line in body)
        sources = [f"{name.lower()}: {source}" for name, source in self.references.items()]
        return "\n\n".join([text, *sources]) + format_differences(self.differences())


def _printed(number: Reference) -> str:
    """As the reference prints it; trailing zeros are lost unless the file has a text."""
    return number if isinstance(number, str) else "" if number is None else f"{number:.10g}"


def _counted(pipeline: Pipeline, stage: Stage, row: Row, column: Column) -> float | None:
    """A cost of the stage's detector; None as long as a search is to tell its operations."""
    sources = [pipeline.stage(name) for name in (stage.path, stage.like, *stage.merge)]
    missing = [s for s in sources if s is not None and stage_state(pipeline, s) != DONE]
    if missing:
        return None
    return detector_cost(pipeline.config_of(stage), column.metric, row.input)
