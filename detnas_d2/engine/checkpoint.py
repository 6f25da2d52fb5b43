"""Checkpoints: written atomically, adapted between supernets, classifiers and detectors."""

from __future__ import annotations

import os
import pickle
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from detnas_d2.files import new_file, write_text
from detnas_d2.modeling import WeightsError, adapt_state_dict, is_supernet


class DetNASCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with three differences.

    Files appear whole or not at all, so that a killed process never leaves a broken one behind;
    backbone weights are adapted to the model (:func:`detnas_d2.modeling.adapt_state_dict`), which
    makes a classification supernet load into a detection supernet, and a supernet into a path;
    pickled files (``.pkl``) may contain nothing but containers and NumPy arrays.

    Attributes:
        loaded_supernet: whether the weights loaded last were those of a DetNAS supernet.
    """

    loaded_supernet = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``name``.pth with the model, the checkpointables and ``kwargs``, on rank 0."""
        if not self.save_dir or not self.save_to_disk:
            return
        data: dict[str, Any] = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        target = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", target)
        with new_file(target) as temporary, open(temporary, "wb") as file:
            torch.save(data, file)
        self.tag_last_checkpoint(os.path.basename(target))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Makes the file the one that a resumed run reads."""
        write_text(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        with open(filename, "rb") as file:
            data = _ArrayUnpickler(file, encoding="latin1").load()
        if "model" in data and "__author__" in data:
            return data
        return {
            "model": {k: v for k, v in data.get("blobs", data).items() if "_momentum" not in k},
            "__author__": "Caffe2",
            "matching_heuristics": True,
        }

    def load_all(self, path: str) -> None:
        """Loads weights for the whole model; other states in the file are left alone.

        Raises:
            WeightsError: the file has no weights, or others, for a part of the model.
        """
        self.load(path, checkpointables=[])
        missing = [k for k in self._missing if not k.endswith("num_batches_tracked")]
        if missing:
            raise WeightsError(
                f"{path} holds no fitting weights for {len(missing)} tensors of the model: "
                f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
            )

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        self.loaded_supernet = is_supernet(checkpoint["model"])
        if not checkpoint.get("matching_heuristics", False):
            checkpoint["model"] = adapt_state_dict(checkpoint["model"], self.model)
        incompatible = super()._load_model(checkpoint)
        self._missing = list(incompatible.missing_keys)
        return incompatible


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
