"""The packages of detnas_d2 import downward only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the ground up. Packages of one floor do not import each other.
FLOORS = (
    ("utils",),
    ("config", "data", "ops"),
    ("layers",),
    ("search_space",),
    ("drawing", "modeling"),
    ("analysis", "evaluation"),
    ("search",),
    ("engine",),
    ("pipeline",),
    ("recipe",),
    ("report",),
    ("programs",),
    ("cli",),
)
# What may use the package, and is never used by it.
ABOVE = {"projects", "benchmarks", "scripts", "tests"}


def _allowed_imports() -> dict[str, frozenset[str]]:
    """Package -> packages of detnas_d2 that it may import, itself among them."""
    # detnas_d2/command.py starts before anything large, and so does detnas_d2/__init__.py, but for
    # detnas_d2.recalibrate, which is imported when it is asked for.
    allowed: dict[str, frozenset[str]] = {"": frozenset({"utils"})}
    allowed["__init__"] = frozenset({"utils", "evaluation"})
    below: set[str] = set()
    for floor in FLOORS:
        for package in floor:
            allowed[package] = frozenset(below | {package})
        below |= set(floor)
    return allowed


ALLOWED = _allowed_imports()


def _package_of(file: Path, root: Path) -> str:
    """The package of detnas_d2 that a file belongs to, "" or "__init__" for those above."""
    if file == root / "detnas_d2" / "__main__.py":  # starts the command line
        return "cli"
    if file == root / "detnas_d2" / "__init__.py":
        return "__init__"
    parts = file.relative_to(root / "detnas_d2").parts
    return parts[0] if len(parts) > 1 else ""


def _imported_modules(file: Path, root: Path) -> list[tuple[int, str]]:
    """(line, absolute dotted name) of every import of a file, wherever in it the import stands."""
    found = []
    package = file.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            # "from detnas_d2 import search" names a package only in its second half.
            found += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
    return found


def violations(root: Path) -> list[str]:
    """Every import under ``root``/detnas_d2 that goes upward or sideways, as text."""
    found = []
    for file in sorted((root / "detnas_d2").rglob("*.py")):
        package = _package_of(file, root)
        for line, module in _imported_modules(file, root):
            top, *rest = module.split(".")
            place = f"{file.relative_to(root)}:{line}"
            if top in ABOVE:
                found.append(f"{place}: imports {module}, which is above detnas_d2")
            elif top == "detnas_d2" and rest and rest[0] in ALLOWED.keys() - ALLOWED[package]:
                found.append(f"{place}: {package or 'the root'} imports {module}")
    return found


def test_imports_go_downward() -> None:
    assert violations(ROOT) == []


def test_every_package_has_a_floor() -> None:
    packages = {path.parent.name for path in (ROOT / "detnas_d2").glob("*/__init__.py")}
    assert packages <= set(ALLOWED)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("layers/a.py", "import detnas_d2.engine\n"),
        ("layers/a.py", "from detnas_d2.modeling.detnas.build import build\n"),
        ("layers/a.py", "from detnas_d2 import search_space\n"),
        ("layers/a.py", "from ..search import candidate\n"),
        ("layers/a.py", "from .. import engine\n"),
        ("layers/deep/a.py", "from ...search import candidate\n"),
        ("layers/a.py", "def f():\n    from detnas_d2 import engine\n"),
        (
            "layers/a.py",
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from detnas_d2.engine import Trainer\n",
        ),
        ("ops/a.py", "from detnas_d2.config import get\n"),
        ("search/a.py", "from detnas_d2.engine import training\n"),
        ("analysis/a.py", "from detnas_d2.search import evolution\n"),
        ("engine/a.py", "from projects.DetNAS import train_net\n"),
        ("__init__.py", "from detnas_d2 import ops\n"),
    ],
)
def test_violation_is_found(tmp_path: Path, file: str, source: str) -> None:
    planted = tmp_path / "detnas_d2" / file
    planted.parent.mkdir(parents=True)
    planted.write_text(source, encoding="utf-8")
    (found,) = violations(tmp_path)
    assert found.startswith(f"detnas_d2/{file}:")


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("engine/a.py", "import torch\nfrom detnas_d2 import __version__\n"),
        ("engine/a.py", "from detnas_d2.search import evolution\nfrom . import hooks\n"),
        ("engine/a.py", "from detnas_d2.engine import training\n"),
        ("analysis/a.py", "from ..modeling import build\nfrom .report import write\n"),
        ("ops/a.py", "from detnas_d2.ops.extension import has_extension\n"),
        ("__main__.py", "from detnas_d2.cli.main import entry\n"),
    ],
)
def test_downward_import_is_allowed(tmp_path: Path, file: str, source: str) -> None:
    planted = tmp_path / "detnas_d2" / file
    planted.parent.mkdir(parents=True)
    planted.write_text(source, encoding="utf-8")
    assert violations(tmp_path) == []
