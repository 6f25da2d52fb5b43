"""Decisions of a new run: what is refused, and by what numbers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from detnas_d2.recipe import decide
from detnas_d2.recipe.inputs import Settings
from detnas_d2.recipe.record import Record
from detnas_d2.search_space import LatencyTable
from detnas_d2.utils.errors import InputError
from tests.recipe.values import CELLS, CPU, DATA, RATES, plan


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every size of images has the same speeds."""
    monkeypatch.setattr(decide, "measure", lambda *_: RATES)


def decided(folder: Path, seconds: float | None, used: float, budget: str = "") -> Record:
    """Of a command that began ``used`` seconds ago."""
    asked = {"budget": budget, "time": seconds, "method": "detnas"}
    start = time.monotonic() - used
    return decide.decide(asked, DATA, CELLS, CPU, Settings(str(folder)), start)


def test_a_refusal_tells_the_least_time_with_what_was_measured(tmp_path: Path) -> None:
    assert decide.too_short(plan(), 120.0, 40.0) == (
        "--time: 2 min are too short here: the shortest run takes about 2 min 2 s, 40 s of looking "
        "at the data and measuring among them; expected --time 3m or more"
    )
    with pytest.raises(InputError, match="^--time: 2 min are too short here"):
        decided(tmp_path, 120.0, 40.0)
    assert decided(tmp_path, 180.0, 40.0).schedule.supernet >= 120


def test_what_was_used_before_the_first_stage_counts(tmp_path: Path) -> None:
    quick, slow = (decided(tmp_path, 600.0, used) for used in (10.0, 200.0))
    assert slow.used == pytest.approx(200, abs=1) and slow.seconds == 600
    for record in (quick, slow):
        assert record.used + record.plan.total(record.schedule) <= 600
    assert slow.schedule.supernet < quick.schedule.supernet


def test_a_larger_space_within_a_budget_needs_the_time_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = LatencyTable(5.0, ((1.0,),), "", (192, 256), 1, "cpu")
    monkeypatch.setattr(
        decide, "within", lambda ms, recipes, *_: [(r, table) for r in reversed(recipes[:2])]
    )
    monkeypatch.setattr(
        decide, "measure", lambda recipe, *_: RATES.times(1 + 9 * (recipe.space != "detnas_demo"))
    )
    for seconds, space, why in (
        (None, "detnas_small", "by --budget"),
        (1e5, "detnas_small", "by --budget"),
        (1200.0, "detnas_demo", "as --time is too short for detnas_small"),
    ):
        record = decided(tmp_path, seconds, 10.0, "20ms")
        assert record.plan.recipe.space == space and record.settings.max_ms == 20.0
        assert dict(record.plan.recipe.reasons)["space"].startswith(f"{why}; its networks have")
    monkeypatch.setattr(decide, "affordable_side", lambda plan, _: plan.recipe.side - 64)
    reasons = dict(decided(tmp_path, 1200.0, 10.0, "20ms").plan.recipe.reasons)
    assert reasons["space"].startswith("as --time is too short for detnas_small; its networks")
    enough = [decide.long_enough(plan(), seconds) for seconds in (None, 1e5, 300.0)]
    assert enough == [True, True, False]
