"""Reading checkpoint files: what is damaged is told, what would run code is refused."""

from __future__ import annotations

import functools
import os
import pickle
import re
import struct
import zipfile
import zlib
from typing import Any

import torch

from detnas_d2.modeling import WeightsError

# What torch and pickle raise for files that are cut off, damaged, or something else.
_UNREADABLE = (
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)


def read_checkpoint(filename: str) -> dict[str, Any]:
    """A checkpoint with its weights under "model": ``.pth``, ``.pkl``, or pycls's ``.pyth``.

    Raises:
        WeightsError: naming the file, and what is wrong with it.
    """
    try:
        if os.path.getsize(filename) == 0:
            raise EOFError("the file is empty")
        if filename.endswith(".pkl"):
            return _read_pickle(filename)
        data = torch.load(filename, map_location="cpu", weights_only=True)
        if filename.endswith(".pyth"):
            state = data["model_state"]
            state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
            return {"model": state, "__author__": "pycls", "matching_heuristics": True}
        return _with_model(data)
    except OSError as error:
        raise WeightsError(f"{filename} cannot be read: {error.strerror or error}") from error
    except _UNREADABLE as error:
        reason = damage(filename) if zipfile.is_zipfile(filename) else ""
        reason = reason or _reason(error)
        raise WeightsError(f"{filename} is no checkpoint that can be read: {reason}") from error


def _reason(error: Exception) -> str:
    """The first line of an error's text; but not torch's advice to unpickle whatever there is."""
    text = str(error).strip()
    if text.startswith("Weights only load failed"):
        found = re.search(r"GLOBAL (\S+)", text)
        other = f"it holds a {found[1]}, which loading weights only refuses; " if found else ""
        return f"{other}expected a dict of tensors that torch.save has written"
    return (text.splitlines() or [type(error).__name__])[0]


def _with_model(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise TypeError(f"it holds a {type(data).__name__}, expected a dict of tensors")
    if "model" not in data and isinstance(data.get("state_dict"), dict):  # of other frameworks
        return {"model": data["state_dict"]}
    if "model" in data and not isinstance(data["model"], dict):
        raise TypeError(f"its 'model' is a {type(data['model']).__name__}, expected a dict")
    return data if "model" in data else {"model": data}


def damage(path: str) -> str:
    """The fault of a checkpoint that this project wrote, "" if it is whole.

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
    if not isinstance(data, dict):
        raise TypeError(f"it holds a {type(data).__name__}, expected a dict of arrays")
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
