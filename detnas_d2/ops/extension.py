"""Loads ``detnas_d2._C``, the library of compiled operators (``csrc/``).

Without it every operator of the package falls back to its reference implementation in PyTorch:
the same results, more slowly. A library that is there and cannot be used is an error instead: it
was built for another torch, CUDA or Python, or from older sources, and nobody wants the slow way
for having forgotten to build it again.
"""

from __future__ import annotations

import importlib
import importlib.util
import mmap
import re
import sys
import warnings
from pathlib import Path

import torch

_MODULE = "detnas_d2._C"
_BUILD = "scripts/bootstrap.sh, or pip install --no-build-isolation --no-deps -e . in its checkout"
_BUILT_FOR = re.compile(rb"detnas_d2 built for ([ -~]+)\n")  # csrc/built_for.cpp
_OPERATORS = (
    "bn_stats",
    "bn_stats_list",
    "bn_stats_fold",
    "bn_fold",
    "pointwise_conv",
    "pointwise_conv_bn",
    "depthwise_conv",
    "depthwise_conv_bn",
    "conv3x3",
    "conv3x3_packed",
    "pack_conv3x3",
    "mixed_depthwise",
    "shuffle_concat",
    "mixed_sum",
    "shuffle_block",
    "shuffle_block_packed",
    "shuffle_blocks_packed",
    "shuffle_block_stats",
    "shuffle_blocks_stats",
    "shuffle_block_training",
    "pack_shuffle_block",
    "roi_align",
    "digest",
)


def environment() -> str:
    """Environment that a library must be built for; setup.py's ``built_for`` says it at build."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, Python {python}"


def find_library(module: str = _MODULE) -> Path | None:
    """The library's file, that of another Python if there is none for this one; or None."""
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.origin is not None:
        return Path(spec.origin)
    package, _, name = module.rpartition(".")
    folders = list(sys.modules[package].__path__) if package in sys.modules else []
    found = [file for folder in folders for file in sorted(Path(folder).glob(f"{name}.*.so"))]
    return found[0] if found else None


def built_for(library: Path) -> str:
    """Environment that a library says it was built for."""
    with open(library, "rb") as file:
        if not library.stat().st_size:
            return "nothing: the file is empty"
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = _BUILT_FOR.search(content)
            return found[1].decode() if found else "an unknown torch, from older sources"


def load_extension(module: str = _MODULE) -> bool:
    """Imports the library, which registers its operators; False if none was built.

    Raises:
        ImportError: there is one, but for another torch, CUDA or Python, from older sources, or
            damaged; one line that says how to build it again.
    """
    if module not in sys.modules:
        library = find_library(module)
        if library is None:
            return False
        if (found := built_for(library)) != environment():
            raise _unusable(library, f"it was built for {found}, and this is {environment()}")
        try:
            importlib.import_module(module)
        except (ImportError, OSError, RuntimeError) as error:  # e.g. a library that it links to
            raise _unusable(library, f"{type(error).__name__}: {error}") from error
    elif sys.modules[module] is None:  # how Python says that it must not be imported
        return False
    missing = [name for name in _OPERATORS if not hasattr(torch.ops.detnas_d2, name)]
    if missing:
        raise _unusable(module, f"it was built from older sources, without {', '.join(missing)}")
    return True


def _unusable(library: Path | str, reason: str) -> ImportError:
    return ImportError(
        f"{library} cannot be used: {reason}. Build it again ({_BUILD}), or delete it for"
        " PyTorch's own operators, which are slower"
    )


def _load_or_warn(module: str = _MODULE) -> bool:
    loaded = load_extension(module)
    if not loaded:
        warnings.warn(
            f"{module} was not built; the reference implementations are used, which are slower."
            f" To build it: {_BUILD}",
            RuntimeWarning,
            stacklevel=2,
        )
    return loaded


_LOADED = _load_or_warn()


def has_extension() -> bool:
    """Whether the compiled operators (``torch.ops.detnas_d2``) are available."""
    return _LOADED


def has_cpu_kernel(name: str) -> bool:
    """Whether an operator is compiled for the CPU; in the library of CUDA's operators for the host
    (tests/emulator) none is.
    """
    key = f"detnas_d2::{name}"
    return _LOADED and bool(torch._C._dispatch_has_kernel_for_dispatch_key(key, "CPU"))


def build_info() -> str:
    """Version, CPU capability and CUDA support of the compiled library, for reports."""
    if not _LOADED:
        return "detnas_d2._C is not available"
    return torch.ops.detnas_d2.build_info()
