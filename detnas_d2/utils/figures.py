"""Figures by matplotlib, without a display: new ones, and files that are the same for the same."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import new_file

FORMATS = ("svg", "png", "pdf")
# What matplotlib would write the time into.
_METADATA: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
_STYLE: Any = {"svg.hashsalt": "detnas_d2", "svg.fonttype": "none"}


def check_figure(file: str) -> None:
    """Before anything is computed for it.

    Raises:
        InputError: matplotlib is missing, or the file's name tells no format.
    """
    if find_spec("matplotlib") is None:
        raise InputError(f"{file}: figures need matplotlib: pip install matplotlib")
    if _format(file) not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise InputError(f"{file}: expected a file name that ends in one of {endings}")


def new_figure(count: int, columns: int = 4) -> tuple[Any, list[Any]]:
    """A figure of ``count`` axes, ``columns`` of them in a row at most."""
    from matplotlib.figure import Figure  # needs no display

    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def save_figure(figure: Any, file: str) -> None:
    """Writes a figure in the format that the file's name ends in; equal figures, equal files."""
    from matplotlib import rc_context

    check_figure(file)
    with new_file(file) as temporary, rc_context(_STYLE):
        figure.savefig(temporary, metadata=_METADATA.get(_format(file)))


def _format(file: str) -> str:
    return os.path.splitext(file)[1].lower().removeprefix(".")
