"""Slices of the campaigns of damage and of file systems, on one finished run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.campaigns import damage, filesystems


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the campaigns keep the finished run."""
    return tmp_path_factory.mktemp("reference")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def _campaign(
    program: ModuleType,
    only: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> list[str]:
    """Lines of a campaign that ends well; its runs are forked from this process."""
    monkeypatch.setattr(sys, "argv", ["campaign", "--only", only, "--folder", str(folder)])
    status = program.main()
    out = capsys.readouterr().out
    assert status == 0, out
    return out.splitlines()


def test_damage_is_mended_or_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _campaign(damage, "supernet", folder, monkeypatch, capsys)
    assert sum(line.startswith("ok ") for line in lines) == 3
    assert lines[-1] == "1 refused, 2 same"


def test_run_on_a_file_system_without_links(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _campaign(filesystems, "symlink", folder, monkeypatch, capsys)[-1] == "1 same"
