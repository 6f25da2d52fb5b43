"""The scripts of both projects are thin, and the same where they do the same."""

from __future__ import annotations

import ast
import os
import runpy
import sys
from pathlib import Path

import pytest

PROJECTS = Path(__file__).resolve().parents[1] / "projects"
SCRIPTS = sorted(str(file.relative_to(PROJECTS)) for file in PROJECTS.glob("*/*.py"))
OWN = ("convert_released.py", "search_net.py")  # each method's


def code(script: str) -> str:
    """A script without its docstring."""
    tree = ast.parse((PROJECTS / script).read_text())
    return ast.unparse(ast.Module(tree.body[1:], []))


def test_scripts_of_one_name_are_the_same_program() -> None:
    detnas, hit = (
        {Path(s).name for s in SCRIPTS if s.startswith(p)} for p in ("DetNAS", "HitDetector")
    )
    assert detnas <= hit and hit - detnas == {"screen_net.py"}
    for name in detnas & hit:
        same = code(f"DetNAS/{name}") == code(f"HitDetector/{name}")
        assert same == (name not in OWN), name


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_is_thin_and_tells_its_arguments(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = PROJECTS / script
    assert not file.is_symlink() and os.access(file, os.X_OK)
    assert len(file.read_text().splitlines()) <= 50
    monkeypatch.setattr(sys, "argv", [str(file), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(file), run_name="__main__")
    assert ended.value.code == 0 and f"usage: {file.name}" in capsys.readouterr().out
