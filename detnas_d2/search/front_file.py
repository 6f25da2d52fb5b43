"""``front.yaml``: the front that a search of several objectives found."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
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
# the supernet's weights; to train it from others, set MODEL.DETNAS.PATH of best.yaml to its path.
"""


def front_text(objectives: Objectives, front: Sequence[CandidateRecord], metric: str) -> str:
    """Text of ``front.yaml``.

    Args:
        front: at least one member.
        metric: that fitness is.
    """
    numbers = {record.path: number for number, record in enumerate(front, start=1)}

    def member(record: CandidateRecord) -> dict[str, Any]:
        costs = {cost: getattr(record, cost) for cost in COSTS}
        known = {cost: value for cost, value in costs.items() if value is not None}
        number = numbers[record.path]
        return {"number": number, "fitness": record.fitness, **known, "path": record.path}

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
    file = os.path.join(folder, FRONT_FILE)
    if not os.path.isfile(file):
        return min(alive, key=lambda record: record.rank_key, default=None)
    path = _best_path(file)
    found = next((record for record in alive if record.path == path), None)
    if found is None:
        raise InputError(
            f"{file}: best is {path!r}, expected a candidate of the search beside it; resume the "
            "search to write the file again"
        )
    return found


def _best_path(file: str) -> Any:
    try:
        value = read_yaml(file).data
    except ConfigError:
        value = None
    return value.get("best") if isinstance(value, dict) else None
