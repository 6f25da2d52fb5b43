"""Reading checkpoint files: what is damaged is told, what would run code is refused."""

from __future__ import annotations

import functools
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import torch

from detnas_d2.modeling import WeightsError


def read_checkpoint(filename: str, others: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """A checkpoint with its weights under "model".

    Args:
        others: reads formats other than ``.pth`` and ``.pkl``.

    Raises:
        WeightsError: naming the file, and what is wrong with it.
    """
    try:
        if os.path.getsize(filename) == 0:
            raise EOFError("the file is empty")
        if filename.endswith(".pkl"):
            return _read_pickle(filename)
        if filename.endswith(".pyth"):
            return others(filename)
        data = torch.load(filename, map_location="cpu", weights_only=True)
        return data if "model" in data else {"model": data}
    except (EOFError, KeyError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        reason = damage(filename) if zipfile.is_zipfile(filename) else ""
        reason = reason or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{filename} is no checkpoint that can be read: {reason}") from error


def damage(path: str) -> str:
    """What is wrong with a checkpoint that this project wrote, "" if it is whole.

    Every byte is read: torch does not compare the checksums that it writes.
    """
    try:
        status = os.stat(path)
        return _damage(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        return error.strerror or str(error)


@functools.lru_cache(maxsize=16)
def _damage(path: str, size: int, changed: int) -> str:
    if size == 0:
        return "it is empty"
    try:
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
        return f"its part {broken} is damaged" if broken else ""
    except (zipfile.BadZipFile, zlib.error, EOFError):
        return "it is cut off or damaged"


def _read_pickle(filename: str) -> dict[str, Any]:
    """A file of Detectron2's model zoo or of Caffe2."""
    with open(filename, "rb") as file:
        data = _ArrayUnpickler(file, encoding="latin1").load()
    if "model" in data and "__author__" in data:
        return data
    return {
        "model": {k: v for k, v in data.get("blobs", data).items() if "_momentum" not in k},
        "__author__": "Caffe2",
        "matching_heuristics": True,
    }


class _ArrayUnpickler(pickle.Unpickler):
    """Reads containers, numbers and NumPy arrays; anything else is refused."""

    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
        ("collections", "OrderedDict"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"refused to load {module}.{name} from a .pkl checkpoint")
        return super().find_class(module, name)
