"""detnas_d2: neural architecture search for object detection on Detectron2."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detnas_d2.evaluation.running_statistics import recalibrate

__all__ = ["__version__", "recalibrate"]
__version__ = "0.2.0"

# The first torch whose torch.load unpickles weights only. Asked without importing it.
if tuple(int(part) for part in version("torch").split(".")[:2]) < (2, 6):
    raise ImportError(f"torch {version('torch')} is installed, detnas_d2 needs torch >= 2.6")

# Detectron2 scripts functions on import and calls torch.meshgrid as in 2021; exported files may be
# TorchScript. Users cannot act on torch's notices about that.
warnings.filterwarnings("ignore", r".*torch\.jit\.\w+.* is deprecated", FutureWarning)
warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release", UserWarning)


def __getattr__(name: str) -> object:
    """``recalibrate``, which imports torch and Detectron2 only when it is asked for."""
    if name == "recalibrate":
        from detnas_d2.evaluation.running_statistics import recalibrate

        return recalibrate
    raise AttributeError(f"module 'detnas_d2' has no attribute {name!r}")
