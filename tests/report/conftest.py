"""Catalogs that forget what a test registers, and the folder of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.conftest import clean_catalogs  # noqa: F401
from tests.report.folders import write_run, write_truth


@pytest.fixture
def truth(tmp_path: Path) -> dict[str, Any]:
    """COCO truth in ``tmp_path / "data"``."""
    return write_truth(tmp_path / "data")


@pytest.fixture
def run(tmp_path: Path, truth: dict[str, Any]) -> Path:
    """Folder of a finished run."""
    folder = tmp_path / "out" / "cells & co"
    write_run(folder, tmp_path / "data", truth)
    return folder
