"""Loading the compiled operators, and doing without them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

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
def test_the_built_library_says_what_it_was_built_for() -> None:
    assert extension.load_extension() is True
    assert extension.built_for(extension.find_library()) == extension.environment()


def test_a_library_that_was_not_built() -> None:
    assert extension.load_extension("detnas_d2._missing") is False


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes the library of the package "foreign"; one line of why it is refused."""
    monkeypatch.setitem(sys.modules, "foreign", package := ModuleType("foreign"))
    package.__path__ = [str(tmp_path)]

    def refused(content: bytes, suffix: str = EXTENSION_SUFFIXES[0]) -> str:
        importlib.invalidate_caches()
        (tmp_path / f"_C{suffix}").write_bytes(content)
        with pytest.raises(ImportError) as caught:
            extension.load_extension("foreign._C")
        message = str(caught.value)
        assert message.startswith(f"{tmp_path}/_C{suffix} cannot be used: ")
        assert "\n" not in message and "pip install --no-build-isolation --no-deps -e ." in message
        return message

    return refused


def built_for(text: str) -> bytes:
    return b"\x7fELF\x00detnas_d2 built for " + text.encode() + b"\n\x00"


@pytest.mark.parametrize(
    "other",
    [
        "torch 2.13.0+cu130, CUDA 13.0, Python 3.11",
        f"torch {torch.__version__}, CUDA 11.8, Python 3.11",
        f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, Python 3.9",
    ],
)
def test_a_library_for_another_environment_is_refused(library, other: str) -> None:
    message = library(built_for(other))
    assert f"it was built for {other}, and this is {extension.environment()}." in message


def test_a_library_for_another_python_alone_is_refused(library) -> None:
    """Python does not see it at all."""
    other = f"torch {torch.__version__}, CUDA none, Python 3.9"
    message = library(built_for(other), ".cpython-39-x86_64-linux-gnu.so")
    assert f"it was built for {other}, and" in message


def test_a_library_that_cannot_be_loaded_gives_the_real_cause(library) -> None:
    assert f"_C{EXTENSION_SUFFIXES[0]}: " in library(built_for(extension.environment()))
    assert "it was built for an unknown torch, from older sources" in library(b"\x7fELF")
    assert "it was built for nothing: the file is empty" in library(b"")


@needs_extension
def test_a_library_from_older_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "_OPERATORS", ("bn_fold", "not_yet"))
    with pytest.raises(ImportError, match="it was built from older sources, without not_yet"):
        extension.load_extension()


def test_one_warning_says_how_to_build(recwarn) -> None:
    assert extension._load_or_warn("detnas_d2._missing") is False
    (warning,) = recwarn.list
    message = str(warning.message)
    assert warning.category is RuntimeWarning
    assert "was not built" in message
    assert "pip install --no-build-isolation --no-deps -e ." in message


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
