"""``front.yaml``: the front that a search of several objectives found."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from detnas_d2.config.reading import ConfigError, read_yaml
from detnas_d2.config.values import COSTS
from detnas_d2.evaluation.candidate import CandidateRecord
from detnas_d2.search.objectives import Objectives
from detnas_d2.utils.errors import InputError

FRONT_FILE = "front.yaml"
_HEAD = """\
# The front of a search, the cheapest by the first cost first: no candidate that was evaluated is at
# least as good as a member in all objectives, and better in one. front/NUMBER.yaml is a member with
# the supernet's weights; to train it from others, copy its MODEL.DETNAS.PATH, or MODEL.HIT, into
# best.yaml.
"""


def front_text(
    objectives: Objectives,
    front: Sequence[CandidateRecord],
    metric: str,
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """Text of ``front.yaml``.

    Args:
        front: at least one member.
        metric: that fitness is.
        intervals: path -> 95 % interval of the fitness, of those that have one.
    """
    known_intervals = intervals or {}
    numbers = {record.path: number for number, record in enumerate(front, start=1)}

    def member(record: CandidateRecord) -> dict[str, Any]:
        costs = {cost: getattr(record, cost) for cost in COSTS}
        known = {cost: value for cost, value in costs.items() if value is not None}
        number = numbers[record.path]
        interval = known_intervals.get(record.path)
        more = {} if interval is None else {"interval": list(interval)}
        return {"number": number, "fitness": record.fitness, **more, **known, "path": record.path}

    reference = {"fitness": 0.0, **dict(zip(objectives.costs, objectives.most, strict=True))}
    value = {
        "metric": metric,
        "objectives": ["fitness", *objectives.costs],
        "hypervolume": objectives.hypervolume(front),
        "reference": reference,
        "least": dict(zip(objectives.costs, objectives.least, strict=True)),
        "best": objectives.best(front).path,
        "recommended": [
            {"budget": budget, **({} if record is None else member(record))}
            for budget, record in objectives.recommended(front)
        ],
        "members": [member(record) for record in front],
    }
    return _HEAD + yaml.safe_dump(value, sort_keys=False, width=10**6)


@dataclass(frozen=True)
class Front:
    """What ``front.yaml`` names, of the candidates of its search.

    Attributes:
        best: the member that is recommended.
        members: the cheapest by the first cost first; the first one is number 1.
        intervals: number of a member -> 95 % interval of its fitness over images, where known.
        recommended: number of a member -> budgets that it is recommended for, None for the knee.
        unmet: budgets that no member is within.
    """

    best: CandidateRecord
    members: tuple[CandidateRecord, ...]
    recommended: Mapping[int, tuple[float | None, ...]] = field(default_factory=dict)
    intervals: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    unmet: tuple[float, ...] = ()

    def spread(self, count: int) -> list[int]:
        """Numbers of ``count`` members: even steps from the first to the last, of which the nearest
        one between both makes way for the recommended one; of one, the recommended one.

        Raises:
            ValueError: there are fewer.
        """
        size, best = len(self.members), self.members.index(self.best) + 1
        if not 1 <= count <= size:
            raise ValueError(f"{count} of {size} members")
        if count == 1:
            return [best]
        steps = [1 + round(step * (size - 1) / (count - 1)) for step in range(count)]
        if count > 2 and best not in steps:
            nearest = min(steps[1:-1], key=lambda number: abs(number - best))
            steps[steps.index(nearest)] = best
        return steps


def has_front(folder: str) -> bool:
    """Whether the search in a folder has ended with a front."""
    return os.path.isfile(os.path.join(folder, FRONT_FILE))


def read_front(folder: str, records: Iterable[CandidateRecord]) -> Front:
    """The front of a finished search.

    Args:
        records: of its history.

    Raises:
        InputError: ``front.yaml`` is missing, damaged, or of another search.
    """
    file = os.path.join(folder, FRONT_FILE)
    known = {record.path: record for record in records if record.fitness is not None}
    try:
        value = read_yaml(file).data
        paths = [value["best"], *(member["path"] for member in value["members"])]
        told = [(entry.get("path"), entry["budget"]) for entry in value["recommended"]]
        intervals = {}
        for number, member in enumerate(value["members"], start=1):
            record = known.get(member["path"])  # of another search it has another fitness
            if "interval" in member and record and record.fitness == member["fitness"]:
                low, high = member["interval"]
                intervals[number] = (float(low), float(high))
    except (AttributeError, ConfigError, OSError, KeyError, TypeError, ValueError):
        paths, told, intervals = [None], [], {}
    unknown = [path for path in paths if not isinstance(path, str) or path not in known]
    if unknown or paths[0] not in paths[1:]:
        wrong = unknown[0] if unknown else paths[0]
        raise InputError(
            f"{file}: best or a member is {wrong!r}, expected a candidate of the search beside it; "
            "resume the search to write the file again"
        )
    budgets: dict[int, tuple[float | None, ...]] = {}
    for path, budget in told:
        if path in paths[1:]:
            number = paths.index(path, 1)
            budgets[number] = (*budgets.get(number, ()), budget)
    members = tuple(known[path] for path in paths[1:])
    unmet = tuple(budget for path, budget in told if path is None and budget is not None)
    return Front(known[paths[0]], members, budgets, intervals, unmet)


def read_objectives(folder: str) -> Objectives:
    """What the search in a folder traded, within the ranges that its hypervolume was taken in.

    Raises:
        InputError: ``front.yaml`` is missing or damaged.
    """
    file = os.path.join(folder, FRONT_FILE)
    try:
        value = read_yaml(file).data
        costs = tuple(value["least"])
        least = tuple(float(value["least"][cost]) for cost in costs)
        most = tuple(float(value["reference"][cost]) for cost in costs)
    except (ConfigError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{file}: no ranges of costs ({error!r}); resume the search to write the file again"
        ) from error
    return Objectives(costs, least, most)


def best_of(folder: str, records: Iterable[CandidateRecord]) -> CandidateRecord | None:
    """The candidate that the ``best.yaml`` of a search holds: that of ``front.yaml`` where there is
    one, else the fittest, which is the best so far while the search runs; None without any.

    Args:
        folder: of the search.
        records: of its history.

    Raises:
        InputError: ``front.yaml`` is damaged, or of another search.
    """
    alive = [record for record in records if record.fitness is not None]
    if not has_front(folder):
        return min(alive, key=lambda record: record.rank_key, default=None)
    return read_front(folder, alive).best
