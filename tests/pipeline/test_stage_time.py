"""The time that a stage has worked, over kills."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from detnas_d2.pipeline import stage_time
from detnas_d2.pipeline.state import running


def test_starts_that_were_killed_count_until_their_last_file(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    assert stage_time.start(str(folder)) == 0.0
    for worked, before in ((40.0, 40.0), (25.0, 65.0)):
        started = json.loads((folder / "started.json").read_text())["time"]
        (folder / "metrics.json").write_text("{}")
        os.utime(folder / "metrics.json", (started + worked, started + worked))
        assert stage_time.start(str(folder)) == pytest.approx(before)
    (folder / "started.json").write_text("{")
    assert stage_time.start(str(folder)) == 0.0


def test_times_of_all_starts_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, now = tmp_path / "stage", 1000.0
    monkeypatch.setattr(stage_time.time, "time", lambda: now)
    assert stage_time.spans(str(folder)) is None
    stage_time.start(str(folder))
    for name in ("started.json", "metrics.json"):
        (folder / name).touch()
        os.utime(folder / name, (1040, 1040))
    assert stage_time.spans(str(folder)) == [(1000, 1040)]
    now = 2000.0
    assert stage_time.spans(str(folder), running=True) == [(1000, 2000)]
    stage_time.start(str(folder))
    now = 2025.0
    stage_time.end(str(folder))
    (folder / "last.txt").touch()
    os.utime(folder / "last.txt", (3000, 3000))
    assert stage_time.spans(str(folder)) == [(1000, 1040), (2000, 2025)]


def test_times_of_starts_that_told_none_are_unknown(tmp_path: Path) -> None:
    """As versions wrote them that kept the seconds alone."""
    file = tmp_path / "started.json"
    file.write_text(json.dumps({"time": 1000.0, "seconds": 0.0}))
    assert stage_time.spans(str(tmp_path)) is None
    stage_time.start(str(tmp_path))
    stage_time.end(str(tmp_path))
    assert stage_time.spans(str(tmp_path)) is None
    file.write_text("[]")
    stage_time.end(str(tmp_path))
    assert stage_time.spans(str(tmp_path)) is None


def test_time_that_several_share_counts_once() -> None:
    assert stage_time.covered([]) == 0
    assert stage_time.covered([(0, 4), (1, 2), (3, 6), (9, 10), (6, 7)]) == 8


def test_the_pause_before_the_next_start_does_not_count(tmp_path: Path) -> None:
    """Whose lock is written before it asks for what was worked."""
    folder = tmp_path / "stage"
    with running(str(folder), "mark"):
        stage_time.start(str(folder))
    started = json.loads((folder / "started.json").read_text())
    killed, now = started["time"] - 3600, started["time"]
    (folder / "started.json").write_text(json.dumps(started | {"time": killed - 40}))
    os.utime(folder / "started.json", (killed - 40, killed - 40))
    (folder / "metrics.json").write_text("{}")
    os.utime(folder / "metrics.json", (killed, killed))
    with running(str(folder), "mark"):
        assert (folder / "running.lock").stat().st_mtime >= now
        assert stage_time.worked(str(folder)) == pytest.approx(40)
