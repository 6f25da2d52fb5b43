"""A part of the campaign against annotations and images; all of it runs by command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns.annotations import FORMATS, run_case

EVERY = 12  # cases of which one runs here

SLICE = [(format, case) for format, module in FORMATS.items() for case in module.CASES[::EVERY]]


@pytest.mark.parametrize("format, case", SLICE, ids=[case.title[:40] for _, case in SLICE])
def test_case(tmp_path: Path, format: str, case) -> None:
    _, wrong = run_case(format, case, tmp_path / "run")
    assert not wrong
