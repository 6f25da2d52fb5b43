"""A search in TensorBoard, read back from its files."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from detnas_d2.evaluation.candidate import CandidateRecord
from detnas_d2.search import Objectives
from detnas_d2.search.events import SearchEvents
from tests.helpers import candidate_record, scalars_in

START = datetime(2026, 11, 1, tzinfo=timezone.utc)


def record(index: int, generation: int, fitness: float | None) -> CandidateRecord:
    return candidate_record(
        index,
        generation=generation,
        fitness=fitness,
        macs=(index + 1) * 100_000_000,
        params=2_000_000,
        latency_ms=1.5 if index == 4 else None,
        error=None if fitness is not None else "out of memory",
        seconds={"recalibration": 1.0, "inference": 2.0, "scoring": 1.0} if index < 3 else {},
        finished=(START + timedelta(minutes=index)).isoformat(timespec="seconds"),
    )


RECORDS = [
    *(record(i, 1, fitness) for i, fitness in enumerate((2.0, None, 3.0))),
    *(record(i, 2, fitness) for i, fitness in enumerate((1.0, 5.0, 4.0), start=3)),
]


def listen(folder: Path, replayed: Sequence[int], live: Sequence[int], *, end: bool = True) -> None:
    events = SearchEvents(folder)
    for index in replayed:
        events(RECORDS[index], size=3, replayed=True)
    for index in live:
        events(RECORDS[index], size=3, replayed=False)
    if end:
        events.close()
    elif events._writer is not None:  # killed, with all of it on disk
        events._writer.flush()


EXPECTED = {
    "search/fitness": {1: 2.0, 3: 3.0, 4: 1.0, 5: 5.0, 6: 4.0},
    "search/best": {1: 2.0, 2: 2.0, 3: 3.0, 4: 3.0, 5: 5.0, 6: 5.0},
    "search/macs_millions": {step: 100.0 * step for step in range(1, 7)},
    "search/params_millions": dict.fromkeys(range(1, 7), 2.0),
    "search/latency_ms": {5: 1.5},
    "search/generation_mean": {3: 2.5, 6: pytest.approx(10 / 3)},
    "search/failed": {3: 1.0, 6: 1.0},
    "time_share/recalibration": {3: 0.25},
    "time_share/inference": {3: 0.5},
    "time_share/scoring": {3: 0.25},
}


def test_points(tmp_path: Path) -> None:
    listen(tmp_path, [], range(6))
    found = scalars_in(tmp_path)
    assert {tag: dict(points) for tag, points in found.items()} == EXPECTED
    assert sum(map(len, found.values())) == sum(map(len, EXPECTED.values()))


def test_a_resumed_search_has_every_point_once(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1.training").touch()
    listen(tmp_path, [], range(4), end=False)
    listen(tmp_path, [2, 0, 1, 3], [4], end=False)  # as they were proposed
    listen(tmp_path, [2, 0, 1, 4, 3], [5])
    found = scalars_in(tmp_path)
    assert {tag: dict(points) for tag, points in found.items()} == EXPECTED
    assert sum(map(len, found.values())) == sum(map(len, EXPECTED.values()))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[0] == "events.out.tfevents.1.training" and len(names) == 2


def test_a_finished_search_keeps_its_events(tmp_path: Path) -> None:
    listen(tmp_path, [], range(6))
    listen(tmp_path, range(6), [])
    assert {tag: dict(points) for tag, points in scalars_in(tmp_path).items()} == EXPECTED


def test_points_of_several_objectives(tmp_path: Path) -> None:
    """Of MACs of 1e8 to 6e8 and a reference of 6e8: the mean of the best fitness within budgets."""
    events = SearchEvents(tmp_path, Objectives(("macs",), (0,), (600_000_000,)))
    for index, found in enumerate(RECORDS):
        events(found, size=3, replayed=index < 2)
    events.close()
    hypervolumes = {3: (2 * 2 + 3 * 3) / 6, 6: (2 * 2 + 2 * 3 + 1 * 5) / 6}
    expected = EXPECTED | {
        "search/hypervolume": {step: pytest.approx(v) for step, v in hypervolumes.items()},
        "search/front_members": {3: 2.0, 6: 3.0},
    }
    assert {tag: dict(points) for tag, points in scalars_in(tmp_path).items()} == expected
