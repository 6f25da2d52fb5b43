"""Stands in for the compiled module of Detectron2, which this installation was built without.

Rotated boxes and deformable convolution need the compiled one; everything else works.
"""

from __future__ import annotations

from typing import NoReturn

import torch


def get_compiler_version() -> str:
    return "none (pure Python build)"


def get_cuda_version() -> str:
    return torch.version.cuda or "none"


def has_cuda() -> bool:
    return False


def __getattr__(name: str) -> NoReturn:
    if name.startswith("__"):  # probed by importlib, inspect and copy
        raise AttributeError(name)
    raise ImportError(
        f"detectron2._C.{name} is not available: this detectron2 was built without its C++ sources"
        " (no rotated boxes, no deformable convolution). Install the official one: pip install"
        " --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
    )
