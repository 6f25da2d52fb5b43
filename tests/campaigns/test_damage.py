"""Slices of the campaigns of damage and of file systems, on one finished run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the campaigns keep the finished run."""
    return tmp_path_factory.mktemp("reference")


def _campaign(name: str, only: str, folder: Path) -> list[str]:
    """Lines of a campaign that ends well."""
    program = Path(__file__).with_name(f"{name}.py")
    command = [sys.executable, str(program), "--only", only, "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.splitlines()


def test_damage_is_mended_or_refused(folder: Path) -> None:
    lines = _campaign("damage", "supernet", folder)
    assert sum(line.startswith("ok ") for line in lines) == 3
    assert lines[-1] == "1 refused, 2 same"


def test_run_on_a_file_system_without_links(folder: Path) -> None:
    assert _campaign("filesystems", "symlink", folder)[-1] == "1 same"
