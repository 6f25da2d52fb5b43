"""The front of a search on its page: what it covers, what is recommended of it, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from detnas_d2.evaluation import CandidateRecord
from detnas_d2.report.figures import shown
from detnas_d2.report.found import FoundStage
from detnas_d2.report.search_figures import COST_NAMES, cost_figures, lines_figure
from detnas_d2.search.front_file import Front, has_front, read_front, read_objectives
from detnas_d2.search.objectives import Objectives, hypervolume_curve

_UNITS = {
    "macs": ("M", "multiply-adds"),
    "params": ("M", "parameters"),
    "latency_ms": (" ms", "latency"),
    "memory_bytes": (" MB", "memory"),
    "file_bytes": (" MB", "file size"),
}
"""Of each cost: the unit, and the cost's name."""
_COLUMNS = {
    "macs": ("MMACs", 1),
    "params": ("M params", 3),
    "latency_ms": ("ms", 2),
    "memory_bytes": ("memory, MB", 2),
    "file_bytes": ("file, MB", 3),
}
"""Of each cost: the title of its column in the table, and digits after the point."""


@dataclass(frozen=True)
class FrontMember:
    """A line of the table.

    Attributes:
        interval: of its fitness, None where it is not known.
        recommended: for what, in words; "" for nothing.
    """

    number: int
    record: CandidateRecord
    interval: tuple[float, float] | None
    recommended: str


@dataclass(frozen=True)
class FrontPart:
    """A front.

    Attributes:
        sentences: what it covers, and what is recommended by which rule.
    """

    metric: str
    members: list[FrontMember]
    sentences: list[str]
    figures: list[tuple[Markup, str]]

    @property
    def columns(self) -> list[tuple[str, list[str]]]:
        """Title and cells of every cost that is known."""
        found = []
        for cost, (title, digits) in _COLUMNS.items():
            values = [getattr(member.record, cost) for member in self.members]
            if all(value is not None for value in values):
                scale = COST_NAMES[cost][1]
                found.append((title, [f"{value * scale:.{digits}f}" for value in values]))
        return found


def front_part(search: FoundStage) -> FrontPart | None:
    """Of a finished search of several objectives; None of any other.

    Raises:
        InputError: a damaged file of the search.
    """
    if not has_front(search.folder):
        return None
    front, objectives = read_front(search.folder, search.history), read_objectives(search.folder)
    cost = objectives.costs[0]
    members = [
        FrontMember(
            number,
            record,
            front.intervals.get(number),
            ", ".join(_budget(b, cost) for b in front.recommended.get(number, ())),
        )
        for number, record in enumerate(front.members, start=1)
    ]
    sentences = [_covered(front.members, objectives), *_recommendations(front, members, cost)]
    metric = search.fitness_metric
    figures = cost_figures(search.history, front.best, objectives.costs, metric)
    figures.append(_hypervolume_figure(search.history, objectives, metric))
    return FrontPart(metric, members, sentences, figures)


def _amount(value: float, cost: str) -> str:
    unit, number = _UNITS[cost][0], value * COST_NAMES[cost][1]
    return f"{number:.0f}{unit}" if number >= 100 else f"{number:.3g}{unit}"


def _budget(budget: float | None, cost: str) -> str:
    return "knee" if budget is None else f"within {_amount(budget, cost)}"


def _covered(members: Sequence[CandidateRecord], objectives: Objectives) -> str:
    ranges = " and ".join(
        f"{_amount(least, cost)} to {_amount(most, cost)} of {_UNITS[cost][1]}"
        for cost, least, most in zip(
            objectives.costs, objectives.least, objectives.most, strict=True
        )
    )
    return (
        f"Hypervolume {objectives.hypervolume(members):.2f}: the mean, over all budgets from "
        f"{ranges}, of the highest fitness within the budget, 0 where nothing is within it"
    )


def _recommendations(front: Front, members: Sequence[FrontMember], cost: str) -> list[str]:
    """The rule, and the budgets without a member."""
    if any(None in budgets for budgets in front.recommended.values()):
        number = next(m.number for m in members if m.recommended)
        return [
            f"Recommended: member {number}, the knee. With fitness and costs scaled to 0 to 1 over "
            "the front it has the largest difference between fitness and cost (of two costs, their "
            "mean); of equal ones it is the cheapest"
        ]
    sentences = []
    if told := [f"member {m.number} {m.recommended}" for m in members if m.recommended]:
        rule = "the fittest member within its budget, of equally fit ones the cheapest"
        head = f"Recommended for budgets of {_UNITS[cost][1]}"
        sentences.append(f"{head}: {'; '.join(told)}. Each is {rule}")
    if front.unmet:
        budgets = ", ".join(_amount(budget, cost) for budget in front.unmet)
        sentences.append(f"Budgets of {_UNITS[cost][1]} that no member is within: {budgets}")
    return sentences


def _hypervolume_figure(
    records: Sequence[CandidateRecord], objectives: Objectives, metric: str
) -> tuple[Markup, str]:
    curve = hypervolume_curve(records, objectives)
    text = "Hypervolume of the front so far, after every generation."
    series = {"hypervolume": (list(curve), list(curve.values()))}
    x, y = "evaluations", f"hypervolume, {shown(metric)}"
    return lines_figure("front-hypervolume", series, x=x, y=y, description=text), text
