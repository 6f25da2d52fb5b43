"""The family of a front on the page: its members and the networks beside them, over cost."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from detnas_d2.pipeline.family import TREATMENTS, Family, FamilyLine, TestedNetwork, family_of
from detnas_d2.pipeline.manifest import GIVEN, RANDOM
from detnas_d2.report.figures import SERIES, legend_below, new_axes, shown, style, svg
from detnas_d2.report.found import Found, FoundStage
from detnas_d2.search.front_file import has_front
from detnas_d2.utils.errors import InputError

_MARKERS = dict(zip(TREATMENTS, "sov", strict=True))


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
    with style():
        figure, (axis,) = new_axes()
        for number, treatment in enumerate(family.treatments):
            marker, color = _MARKERS[treatment], SERIES[number]
            for origin in (None, RANDOM, GIVEN):
                lines = [
                    line
                    for line in family.lines
                    if treatment in line.cells and _cost_of(line, cost) is not None
                    if (line.number is not None) == (origin is None)
                    if origin is None or line.origin == origin
                ]
                if not lines:
                    continue
                cells = [line.cells[treatment] for line in lines]
                heights = [cell.mean for cell in cells]
                errors = [
                    [
                        max(0.0, sign * (cell.interval[end] - cell.mean)) if cell.interval else 0.0
                        for cell in cells
                    ]
                    for end, sign in ((0, -1), (1, 1))
                ]
                who = {None: "front", RANDOM: "random", GIVEN: "by hand"}[origin]
                axis.errorbar(
                    [_cost_of(line, cost) for line in lines],
                    heights,
                    yerr=errors,
                    fmt=f"{marker}-" if origin is None else marker,
                    color=color,
                    markerfacecolor=color if origin is None else "none",
                    markersize=6 if origin != GIVEN else 9,
                    linewidth=1.6,
                    elinewidth=1,
                    label=f"{who}, {treatment}",
                )
        axis.set(xlabel=label, ylabel=f"{shown(family.metric)}, %")
        legend_below(figure, axis)
        text = (
            f"Members of the front (filled, joined) and other networks (hollow; large: by hand), "
            f"{shown(family.metric)} on test images over {label}. Bars: 95 % intervals over images."
        )
        return svg(figure, f"family-{cost}", text), text
