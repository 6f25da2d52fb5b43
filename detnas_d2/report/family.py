"""The family of a front on the page: its members and the networks beside them, over cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from detnas_d2.pipeline.family import (
    TREATMENTS,
    Family,
    FamilyCell,
    FamilyLine,
    TestedNetwork,
    family_of,
)
from detnas_d2.pipeline.manifest import GIVEN, RANDOM
from detnas_d2.report.figures import SERIES, legend_below, new_axes, shown, style, svg
from detnas_d2.report.found import Found, FoundStage
from detnas_d2.search.front_file import has_front
from detnas_d2.utils.errors import InputError

_MARKERS = dict(zip(TREATMENTS, "sov", strict=True))


@dataclass(frozen=True)
class _Looks:
    """How networks of one kind are drawn.

    Attributes:
        who: in the legend.
        origin: of networks beside the front; "" for its members.
        size: of their marks.
    """

    who: str
    origin: str
    size: int

    def fit(self, line: FamilyLine) -> bool:
        return self.origin == (line.origin if line.number is None else "")


_LOOKS = (_Looks("front", "", 6), _Looks("random", RANDOM, 6), _Looks("by hand", GIVEN, 9))


@dataclass(frozen=True)
class FamilyPart:
    """A family and its figures."""

    family: Family
    figures: list[tuple[Markup, str]]

    @property
    def timed(self) -> bool:
        """Whether a latency is known."""
        return any(line.milliseconds is not None for line in self.family.lines)


def family_part(found: Found, search: FoundStage) -> FamilyPart | None:
    """Of the front that ``search`` found; None where it has none, or fewer than two of its members
    were tested.

    Raises:
        InputError: a damaged file of the search.
    """
    if not has_front(search.folder):
        return None
    networks = []
    for stage in found.networks:
        if stage.seed == search.seed and (not found.table or stage.row in found.table):
            try:
                cfg = stage.config
            except InputError:  # what it is cannot be told
                continue
            networks.append(
                TestedNetwork(
                    stage.name,
                    stage.kind,
                    stage.row,
                    stage.origin,
                    stage.folder,
                    cfg,
                    stage.architecture,
                    stage.results,
                )
            )
    family = family_of(search.config, search.folder, search.history, networks)
    if family is None:
        return None
    costs = [("macs", "multiply-adds, millions"), ("milliseconds", "latency, ms")]
    figures = [_figure(family, *cost) for cost in costs if _is_known(family, cost[0])]
    return FamilyPart(family, figures)


def _is_known(family: Family, cost: str) -> bool:
    return sum(_cost_of(line, cost) is not None for line in family.lines) > 1


def _cost_of(line: FamilyLine, cost: str) -> float | None:
    return line.cost.macs / 1e6 if cost == "macs" else line.milliseconds


def _figure(family: Family, cost: str, label: str) -> tuple[Markup, str]:
    """Scores over a cost: a line for each treatment of the members, hollow marks for others."""
    priced = [(price, line) for line in family.lines if (price := _cost_of(line, cost)) is not None]
    known = [line for _, line in sorted(priced, key=lambda pair: pair[0])]
    with style():
        figure, (axis,) = new_axes()
        for number, treatment in enumerate(family.treatments):
            treated = [line for line in known if treatment in line.cells]
            for looks in _LOOKS:
                lines = [line for line in treated if looks.fit(line)]
                if lines:
                    _draw(axis, lines, cost, treatment, SERIES[number], looks)
        axis.set(xlabel=label, ylabel=f"{shown(family.metric)}, %")
        legend_below(figure, axis)
        text = (
            f"Members of the front (filled, joined) and other networks (hollow; large: by hand), "
            f"{shown(family.metric)} on test images over {label}. Bars: 95 % intervals over images."
        )
        return svg(figure, f"family-{cost}", text), text


def _draw(
    axis: Any, lines: Sequence[FamilyLine], cost: str, treatment: str, color: str, looks: _Looks
) -> None:
    """Marks of networks that were treated in one way, with the bars of their intervals."""
    cells = [line.cells[treatment] for line in lines]
    axis.errorbar(
        [_cost_of(line, cost) for line in lines],
        [cell.mean for cell in cells],
        yerr=np.transpose([_bar(cell) for cell in cells]),
        fmt=_MARKERS[treatment] if looks.origin else f"{_MARKERS[treatment]}-",
        color=color,
        markerfacecolor="none" if looks.origin else color,
        markersize=looks.size,
        linewidth=1.6,
        elinewidth=1,
        label=f"{looks.who}, {treatment}",
    )


def _bar(cell: FamilyCell) -> tuple[float, float]:
    """Lengths of the bar below and above the mean; it may lie outside of the interval."""
    if cell.interval is None:
        return 0.0, 0.0
    low, high = cell.interval
    return max(0.0, cell.mean - low), max(0.0, high - cell.mean)
