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
