"""The networks of a front that a run trains: no more than the front has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from detnas_d2.pipeline.definition import read_pipeline
from detnas_d2.recipe.record import Record, read_record
from detnas_d2.recipe.session import Session
from detnas_d2.search import History
from detnas_d2.search.front_file import front_text
from detnas_d2.search.objectives import Objectives
from detnas_d2.search_space.space import SPACES
from tests.helpers import candidate_record
from tests.recipe.begun import SEARCHER, config, finish, state
from tests.recipe.values import plan, record_of


def with_a_front(record: Record, members: int) -> None:
    """Gives a finished search a front of so many members."""
    folder = Path(record.settings.output, "search")
    history = History.open(folder, SEARCHER, resume=True)
    space = SPACES["detnas_demo"]
    for number in range(1, members + 1):
        path = space.path((number % 4, number // 4, *[0] * (len(space.layers) - 2)))
        fields = {"fitness": 10.0 + number, "macs": 100 + number}
        history.append(candidate_record(number, path=str(path), choices=path.choices, **fields))
    objectives = Objectives(("macs",), (0.0,), (200.0,), (200.0,))
    (folder / "front.yaml").write_text(front_text(objectives, list(history)[1:], "bbox/AP"))


@pytest.mark.parametrize(("seconds", "members", "trained"), [(None, 2, 2), (600.0, 4, 3)])
def test_a_family_is_no_larger_than_the_front(
    seconds: float | None,
    members: int,
    trained: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = replace(plan(), family=3)
    record = record_of(tmp_path, plan=asked, seconds=seconds)
    search = config(record, "search.yaml")["SEARCH"]
    assert search["OBJECTIVES"] == ["fitness", "macs"] and search["BUDGETS"] == [48_000_000]
    for name in ("supernet", "search"):
        finish(record, name, asked.seconds_of(name, record.schedule))
    with_a_front(record, members)
    session = Session(record)
    now = session.record
    names = [f"member_{number}" for number in range(1, trained)]
    assert now.plan.members(now.schedule) == names and now.plan.family == 3
    pipeline = read_pipeline(now.pipeline_file)
    found = [pipeline.known_stage(name).member for name in names]
    assert found == [(number, trained) for number in range(1, trained)]
    assert set(names) < set(pipeline.table)
    assert config(now, "search.yaml")["SEARCH"]["OBJECTIVES"] == ["fitness", "macs"]
    assert state(now, "search") == "done"
    few = "Networks of the front: 2, all that it has (asked for: 3)"
    assert (few in capsys.readouterr().out) == (members == 2)
    assert read_record(str(tmp_path)) == now
