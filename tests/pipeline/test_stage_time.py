"""The time that a stage has worked, over kills."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from detnas_d2.pipeline import stage_time


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
