"""What is handed out: the source distribution, what pip installs from it, and the version."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

import detnas_d2
from detnas_d2.ops.extension import find_library

ROOT = Path(__file__).resolve().parents[1]

# Compiling takes minutes and scripts/bootstrap.sh has done it: objects are empty and the checkout's
# library is the linker's output; setup.py's probe of OpenMP is compiled as ever.
COMPILER = """#!/bin/sh
for word; do [ "$last" = -o ] && out=$word; last=$word; done
case "$out" in
*/csrc/*.o) : >"$out" ;;
*/_C.*.so) cp "{library}" "$out" ;;
*) exec {compiler} "$@" ;;
esac
"""


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files of the checkout, relative to it."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git checkout")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def sdist(tracked, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    for name in tracked:
        target = folder / "checkout" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    return build("sdist", folder / "checkout", folder)


def build(kind: str, source: Path, folder: Path) -> Path:
    """The "sdist" or "wheel" of a source tree, by the backend that pip calls too."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(folder)!r}))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    return folder / done.stdout.splitlines()[-1]


def test_source_distribution_is_the_whole_checkout(sdist: Path, tracked: list[str]) -> None:
    with tarfile.open(sdist) as tar:
        files = {m.name.split("/", 1)[1] for m in tar.getmembers() if not m.isdir()}
    added = {name for name in files if "egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert files - added == set(tracked) - {".gitignore"}


def test_installs_from_the_source_distribution_and_imports_elsewhere(
    sdist: Path, tracked: list[str], tmp_path: Path, monkeypatch
) -> None:
    library, compiler = find_library(), shutil.which("g++")
    if library is None or compiler is None:
        pytest.skip("no g++, or the operators were not built")
    wrapper = tmp_path / "c++"
    wrapper.write_text(COMPILER.format(library=library, compiler=compiler))
    wrapper.chmod(0o755)
    for variable in ("CC", "CXX"):
        monkeypatch.setenv(variable, str(wrapper))
    with tarfile.open(sdist) as tar:
        tar.extractall(tmp_path, filter="data")
    wheel = build("wheel", tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path)
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--target", str(site), str(wheel)], check=True, capture_output=True)

    found = {str(path.relative_to(site)) for path in (site / "detnas_d2").rglob("*")}
    package = {name for name in tracked if name.startswith("detnas_d2/")}
    assert package <= found and "detnas_d2/py.typed" in package
    assert {path.name for path in site.iterdir()} == {
        "bin",
        "detnas_d2",
        f"detnas_d2-{detnas_d2.__version__}.dist-info",
    }
    assert [path.name for path in (site / "bin").iterdir()] == ["detnas"]
    monkeypatch.setenv("PYTHONPATH", str(site))
    code = (
        "import detnas_d2, detnas_d2.ops, importlib.metadata as m\n"
        "print(detnas_d2.__file__, detnas_d2.ops.has_extension(), m.version('detnas_d2'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    expected = f"{site}/detnas_d2/__init__.py True {detnas_d2.__version__}"
    assert done.stdout.splitlines()[-1] == expected


def test_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == detnas_d2.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    latest = re.search(r"^## \[(\d[^\]]*)\] - (\S+)$", changelog, flags=re.MULTILINE)
    assert latest is not None
    assert latest.groups() == (detnas_d2.__version__, citation["date-released"])


def test_notices_that_users_cannot_act_on_are_not_shown() -> None:
    code = (
        "import warnings, detnas_d2\n"
        "warnings.warn('torch.meshgrid: in an upcoming release, it will be required')\n"
        "warnings.warn('`torch.jit.script` is deprecated', FutureWarning)\n"
        "warnings.warn('`torch.jit.load` is deprecated. Please switch', FutureWarning)\n"
        "warnings.warn('a disk is full')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "a disk is full" in done.stderr and done.stderr.count("Warning") == 1, done.stderr
