"""Loads ``detnas_d2._C``, the library of compiled operators (``csrc/``).

Without it every operator of the package falls back to its reference implementation in PyTorch:
the same results, more slowly.
"""

from __future__ import annotations

import importlib
import warnings

import torch

_MODULE = "detnas_d2._C"
_OPERATORS = (
    "bn_stats",
    "bn_stats_list",
    "bn_fold",
    "pointwise_conv",
    "depthwise_conv",
    "mixed_depthwise",
    "shuffle_concat",
    "mixed_sum",
    "shuffle_block",
    "shuffle_block_stats",
    "digest",
)


def load_extension(module: str = _MODULE) -> str | None:
    """Import the library, which registers its operators; the reason why that failed, or None."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            return f"{type(error).__name__}: {error}"
        return "it was not built"
    except (ImportError, OSError, RuntimeError) as error:
        # Built for another torch or Python, a missing shared library, operators registered twice.
        return f"{type(error).__name__}: {error}"
    missing = [name for name in _OPERATORS if not hasattr(torch.ops.detnas_d2, name)]
    if missing:
        return f"it was built from older sources, without {', '.join(missing)}"
    return None


def _load_or_warn(module: str = _MODULE) -> bool:
    cause = load_extension(module)
    if cause is not None:
        warnings.warn(
            f"{module} could not be loaded ({cause}); the reference implementations are used,"
            " which are slower. To build it: pip install --no-build-isolation -e . in the"
            " repository, or scripts/bootstrap.sh",
            RuntimeWarning,
            stacklevel=2,
        )
    return cause is None


_LOADED = _load_or_warn()


def has_extension() -> bool:
    """Whether the compiled operators (``torch.ops.detnas_d2``) are available."""
    return _LOADED


def build_info() -> str:
    """Version, CPU capability and CUDA support of the compiled library, for reports."""
    if not _LOADED:
        return "detnas_d2._C is not available"
    return torch.ops.detnas_d2.build_info()
