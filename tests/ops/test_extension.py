"""Loading the compiled operators, and doing without them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import detnas_d2
from detnas_d2.ops import build_info, extension, has_extension

needs_extension = pytest.mark.skipif(not has_extension(), reason="detnas_d2._C is not built")


@needs_extension
def test_build_info_names_version_and_capability() -> None:
    info = torch.ops.detnas_d2.build_info()
    assert info == build_info()
    assert info.startswith(f"detnas_d2 {detnas_d2.__version__}, CPU capability ")
    assert torch.backends.cpu.get_cpu_capability() in info
    assert info.endswith(("CUDA yes", "CUDA no"))


def test_has_extension_tells_whether_operators_are_registered() -> None:
    assert has_extension() == hasattr(torch.ops.detnas_d2, "build_info")


@needs_extension
def test_loading_the_built_library_gives_no_cause() -> None:
    assert extension.load_extension() is None


def test_missing_library_is_named() -> None:
    assert extension.load_extension("detnas_d2._missing") == "it was not built"


def test_failing_library_gives_the_real_cause(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "broken_extension.so").write_bytes(b"not a library")
    (tmp_path / "needs_more.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "file too short" in extension.load_extension("broken_extension")
    assert "a_module_that_is_not_there" in extension.load_extension("needs_more")


def test_one_warning_says_how_to_build(recwarn) -> None:
    assert extension._load_or_warn("detnas_d2._missing") is False
    (warning,) = recwarn.list
    message = str(warning.message)
    assert warning.category is RuntimeWarning
    assert "it was not built" in message
    assert "pip install --no-build-isolation -e ." in message


def test_package_works_without_the_library() -> None:
    """In a process of its own: the operators cannot be unloaded from this one."""
    program = (
        "import sys; sys.modules['detnas_d2._C'] = None\n"  # makes the import fail
        "from detnas_d2.ops import build_info, has_extension\n"
        "assert not has_extension()\n"
        "print(build_info())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(detnas_d2.__file__).parents[1],
    )
    assert done.stdout == "detnas_d2._C is not available\n"
    assert done.stderr.count("RuntimeWarning") == 1
