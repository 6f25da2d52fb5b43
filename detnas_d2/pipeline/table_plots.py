"""Figures of tables: one column over another, or the rows of a column side by side.

``PLOT: {X: "MACs (M)", Y: AP}`` in a table has a point for each row: figure 1 of DetNAS.
``PLOT: {Y: mAP}`` has a place for each row, with all its networks; names such as "neck: conv_k3_d1"
make an axis of each part: figure 3 of Hit-Detector. Hollow points, and bars where a range is
printed, are the numbers of others; filled ones were measured, with the standard deviation over
networks.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from detnas_d2.pipeline.tables import Cell, Reference, Row, Table
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.figures import new_figure, save_figure

_ABREAST = 3  # axes
_MEASURED = "tab:blue"
_COLOURS = ("tab:orange", "tab:green", "tab:purple", "tab:red")
_MARKERS = ("o", "s", "^", "D")
_RANGE = re.compile(r"\s*([-+.\d]+)\s+to\s+([-+.\d]+)\s*")


def draw_tables(tables: Sequence[Table], file: str) -> None:
    """Draws the tables that have a PLOT into one file.

    Raises:
        InputError: none has, or none has a number yet.
    """
    panels = [panel for table in tables if table.plot for panel in _panels(table)]
    if not panels:
        raise InputError(f"--plot {file}: no table of the file has a PLOT")
    figure, axes = new_figure(len(panels), columns=_ABREAST)
    widest = max(len(rows) for _, _, rows in panels)
    across, down = min(len(panels), _ABREAST), -(-len(panels) // _ABREAST)
    figure.set_size_inches(max(5.0, 0.4 * widest + 1.2) * across, 4.2 * down)
    drawn, first = False, dict[str, Any]()
    for axis, (table, title, rows) in zip(axes, panels, strict=True):
        if axis is not first.setdefault(table.title, axis):
            axis.sharey(first[table.title])
        draw = _draw_points if table.plot and table.plot.x else _draw_places
        drawn = draw(axis, table, rows) or drawn
        axis.set_title(title, fontsize="medium")
    if not drawn:
        raise InputError(f"--plot {file}: neither a measured nor a printed number to draw yet")
    labels: dict[str, Any] = {}
    for axis in axes:
        handles, names = axis.get_legend_handles_labels()
        labels.update(zip(names, handles, strict=True))
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=4, frameon=False)
    save_figure(figure, file)


def _panels(table: Table) -> Iterator[tuple[Table, str, list[Row]]]:
    """(table, title, rows) of each axis."""
    if table.plot is not None and not table.plot.x:
        groups = {row.name.partition(": ")[0] for row in table.rows if ": " in row.name}
        if groups and all(": " in row.name for row in table.rows):
            for name, rows in itertools.groupby(table.rows, lambda r: r.name.partition(": ")[0]):
                yield table, name, list(rows)
            return
    yield table, table.title, list(table.rows)


def _draw_points(axis: Any, table: Table, rows: list[Row]) -> bool:
    """A point for each row and source; whether there is any."""
    assert table.plot is not None
    across, up = table.column(table.plot.x), table.column(table.plot.y)
    points: list[tuple[float, float, str]] = []
    for row in rows:
        x, y = (table.cell(row, table.columns[n], n) for n in (across, up))
        if x.mean is not None and y.mean is not None:
            bar = y.deviation if len(y.values) > 1 else None
            axis.errorbar(
                *(x.mean, y.mean, bar), fmt="o", color=_MEASURED, label="measured", zorder=3
            )
            points.append((x.mean, y.mean, row.name))
        for number, name in enumerate(table.references):
            at = [_number(cell.references.get(name)) for cell in (x, y)]
            if at[0] is not None and at[1] is not None:
                axis.plot(*at, **_hollow(number), label=name.lower())
                points.append((at[0], at[1], row.name))
    _name_points(axis, points)
    axis.set(xlabel=table.plot.x, ylabel=table.plot.y)
    axis.grid(alpha=0.3)
    return bool(points)


def _name_points(axis: Any, points: list[tuple[float, float, str]]) -> None:
    """A row's name beside the first of its points, towards the middle of the axis."""
    axis.margins(0.12)
    if not points:
        return
    low, high = min(p[0] for p in points), max(p[0] for p in points)
    named: set[str] = set()
    for x, y, name in points:
        if name in named:
            continue
        named.add(name)
        left = x <= (low + high) / 2
        axis.annotate(
            name,
            (x, y),
            (7 if left else -7, 5),
            textcoords="offset points",
            fontsize="small",
            ha="left" if left else "right",
        )


def _draw_places(axis: Any, table: Table, rows: list[Row]) -> bool:
    """A place for each row with all its networks; whether there is a number."""
    assert table.plot is not None
    number = table.column(table.plot.y)
    found = False
    for place, row in enumerate(rows):
        cell = table.cell(row, table.columns[number], number)
        found = _draw_place(axis, place, cell, table) or found
    names = [row.name.rpartition(": ")[2] for row in rows]
    axis.set_xticks(range(len(rows)), names, rotation=60, ha="right", fontsize="small")
    axis.set(ylabel=table.plot.y, xlim=(-0.6, len(rows) - 0.4))
    axis.grid(axis="y", alpha=0.3)
    return found


def _draw_place(axis: Any, place: int, cell: Cell, table: Table) -> bool:
    found = cell.mean is not None
    for number, name in enumerate(table.references):
        printed = cell.references.get(name)
        limits, value = _range(printed), _number(printed)
        found = found or limits is not None or value is not None
        if limits is not None:
            bar = {"color": _COLOURS[number % len(_COLOURS)], "alpha": 0.4, "lw": 9}
            label = f"{name.lower()}, range"
            axis.plot([place] * 2, limits, solid_capstyle="butt", label=label, **bar)
        elif value is not None:
            axis.plot(place, value, **_hollow(number), label=name.lower())
    axis.plot([place] * len(cell.values), cell.values, ".", color="tab:gray", alpha=0.6)
    if cell.mean is not None:
        spread = cell.deviation if len(cell.values) > 1 else None
        axis.errorbar(
            place, cell.mean, spread, fmt="o", color=_MEASURED, label="measured", zorder=3
        )
    return found


def _hollow(number: int) -> dict[str, Any]:
    colour = _COLOURS[number % len(_COLOURS)]
    marker = _MARKERS[number % len(_MARKERS)]
    return {"marker": marker, "mfc": "none", "mec": colour, "ls": "none", "ms": 8}


def _number(printed: Reference) -> float | None:
    try:
        return None if printed is None else float(printed)
    except ValueError:
        return None


def _range(printed: Reference) -> tuple[float, float] | None:
    match = _RANGE.fullmatch(printed) if isinstance(printed, str) else None
    return None if match is None else (float(match[1]), float(match[2]))
