"""Reading of TABLES: what may stand in them, and what they name exists."""

from __future__ import annotations

from typing import Any

from detnas_d2.analysis.detector_cost import DETECTOR_COSTS
from detnas_d2.pipeline.report import METRICS
from detnas_d2.pipeline.tables import Column, Pipelines, Plot, Reference, Row, Table, TableError

_NEEDED = {"COLUMNS", "ROWS"}
_KEYS = {"TITLE", "REFERENCES", "COMPARE", "PLOT", *_NEEDED}


def read_tables(file: str, entries: Any, pipelines: Pipelines) -> tuple[Table, ...]:
    """Parses and checks TABLES of a file whose pipelines are read.

    Raises:
        TableError: naming the file and the key.
    """
    if not isinstance(entries, list):
        raise TableError(f"{file}: TABLES: expected a list of tables")
    return tuple(_table(file, entry, pipelines) for entry in entries)


def _table(file: str, data: Any, pipelines: Pipelines) -> Table:
    if not isinstance(data, dict) or not _NEEDED <= set(data) <= _KEYS:
        raise TableError(
            f"{file}: TABLES: expected COLUMNS, ROWS and no others of {', '.join(sorted(_KEYS))}"
        )
    references = data.get("REFERENCES", {})
    texts = isinstance(references, dict) and [*references, *references.values()]
    if texts is False or not all(isinstance(text, str) for text in texts):
        raise TableError(f"{file}: REFERENCES: expected NAME: where its numbers are from")
    columns = tuple(_entry(file, "COLUMNS", Column, entry) for entry in data["COLUMNS"])
    rows = tuple(_row(file, entry, references, len(columns)) for entry in data["ROWS"])
    names = [row.name for row in rows if row.row]
    compare = data.get("COMPARE", names[:1])
    compare = [compare] if isinstance(compare, str) else compare
    if not isinstance(compare, list) or any(name not in names for name in compare):
        raise TableError(f"{file}: COMPARE is {compare!r}: expected NAMEs of ROWS that are built")
    title, plot = data.get("TITLE", file), _plot(file, data.get("PLOT"), columns)
    table = Table(title, columns, rows, references, pipelines, tuple(compare), plot)
    _check(file, table)
    return table


def _plot(file: str, entry: Any, columns: tuple[Column, ...]) -> Plot | None:
    if entry is None:
        return None
    plot: Plot = _entry(file, "PLOT", Plot, entry)
    names = [column.name for column in columns]
    for key, name in (("X", plot.x), ("Y", plot.y)):
        if name not in names and (name or key == "Y"):
            raise TableError(f"{file}: PLOT: {key} {name!r}: expected one of {', '.join(names)}")
    return plot


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
                    f"expected one of {', '.join(pipelines) or 'the names in PIPELINES'}"
                )
            if not pipelines[name].stages_of(row.row):
                raise TableError(
                    f"{file}: ROWS: {row.name!r}: no stage of {name or 'the file'} is {row.row!r}"
                )
