"""A slice of the campaign of damage: interrupted runs whose files are spoiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_damage_is_mended_or_refused() -> None:
    command = [sys.executable, str(Path(__file__).with_name("damage.py")), "--only", "supernet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    assert sum(line.startswith("ok ") for line in lines) == 3
    assert lines[-1] == "1 refused, 2 same"
