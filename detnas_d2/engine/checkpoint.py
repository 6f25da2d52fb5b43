"""Checkpoints: written atomically, adapted between supernets, classifiers and detectors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import Tensor, nn

from detnas_d2.engine.checkpoint_files import damage, read_checkpoint
from detnas_d2.modeling import WeightsError, adapt_state_dict, is_supernet
from detnas_d2.modeling.weights_fit import check_fit, check_numbers, strip_shared_prefixes
from detnas_d2.utils.io import new_file, write_text

FINAL = "model_final"
"""Name of the checkpoint at the end of a training, without the extension."""
_PERIODIC = re.compile(r"model_(\d+)\.pth")
KEPT = 2
"""Periodic checkpoints that stay: the newest, and one to go back to."""


class DetNASCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with five differences.

    Files appear whole or not at all, so that a killed process never leaves a broken one behind.
    Of the periodic checkpoints the newest two stay, and those of every ``keep_every`` iterations.
    A file that is damaged all the same does not end a run: it goes on from the one before.
    Backbone weights are adapted to the model (:func:`detnas_d2.modeling.adapt_state_dict`), which
    makes a classification supernet load into a detection supernet, and a supernet into a path.
    Pickled files (``.pkl``) may contain nothing but containers and NumPy arrays.

    Attributes:
        loaded_supernet: whether the weights loaded last were those of a DetNAS supernet.
        keep_every: iterations between two periodic checkpoints that stay for good; 0: none do.
    """

    loaded_supernet = False
    keep_every = 0
    _whole = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``name``.pth with the model, the checkpointables and ``kwargs``, on rank 0."""
        if not self.save_dir or not self.save_to_disk:
            return
        data: dict[str, Any] = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        target = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", target)
        write_checkpoint(target, data)
        self.tag_last_checkpoint(os.path.basename(target))
        self._remove_older(kwargs.get("iteration", -1))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Makes the file the one that a resumed run reads."""
        write_text(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)

    def _remove_older(self, iteration: int) -> None:
        """Removes the periodic checkpoints that one of ``iteration`` makes superfluous."""
        older = sorted(number for number in self._periodic() if number <= iteration)
        for number in older[:-KEPT]:
            if not self.keep_every or (number + 1) % self.keep_every:
                os.remove(os.path.join(self.save_dir, self._periodic()[number]))

    def _periodic(self) -> dict[int, str]:
        """Iteration -> name of the periodic checkpoints in the folder."""
        names = os.listdir(self.save_dir) if os.path.isdir(self.save_dir) else []
        return {_number(name): name for name in names if _PERIODIC.fullmatch(name)}

    def has_checkpoint(self) -> bool:
        """Whether there is a whole checkpoint to resume from. Collective, like the next one."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """The checkpoint to resume from, "" if there is none.

        The one that ``last_checkpoint`` names or, with a warning, the newest before it that is
        whole. Rank 0 decides.
        """
        found = self._newest() if comm.is_main_process() else ""
        return comm.all_gather(found)[0]

    def _newest(self) -> str:
        candidates = list(self._candidates())
        for name in candidates:
            path = os.path.join(self.save_dir, name)
            problem = damage(path)
            if not problem:
                if name != candidates[0]:
                    self.logger.warning("%s: resuming from %s instead", self.save_dir, name)
                return path
            self.logger.warning("Checkpoint %s cannot be used: %s", path, problem)
        if candidates:
            self.logger.warning("%s: no checkpoint is whole, starting over", self.save_dir)
        return ""

    def _candidates(self) -> Iterator[str]:
        """Names of what may be resumed from: the last one, then those before it, newest first."""
        try:
            with open(os.path.join(self.save_dir, "last_checkpoint"), encoding="utf-8") as file:
                last = file.read().strip()
        except (OSError, UnicodeDecodeError):
            last = ""
        before, final = sorted(self._periodic().items(), reverse=True), f"{FINAL}.pth"
        if last and last == os.path.basename(last):
            yield last
            if _PERIODIC.fullmatch(last):
                before = [(number, name) for number, name in before if number < _number(last)]
        elif os.path.exists(os.path.join(self.save_dir, final)) or before:
            self.logger.warning(
                "%s: last_checkpoint is missing or names no file: taking the newest checkpoint",
                self.save_dir,
            )
            if os.path.exists(os.path.join(self.save_dir, final)):
                yield final
        yield from (name for _, name in before)

    def save_final(self, iteration: int) -> None:
        """Writes ``model_final.pth`` unless the run was resumed from it.

        For a training that was ended between its last periodic checkpoint and the final one.
        """
        if os.path.basename(self.get_checkpoint_file()) != f"{FINAL}.pth":
            self.save(FINAL, iteration=iteration)
        elif self.save_dir and self.save_to_disk:
            self._remove_older(iteration)  # it may have been ended before it did

    def _load_file(self, filename: str) -> dict[str, Any]:
        return read_checkpoint(filename)

    def load(
        self, path: str, checkpointables: list[str] | None = None, *, whole: bool = False
    ) -> dict[str, Any]:
        """Loads the model and the checkpointables, all of them by default: then a run is resumed.

        Args:
            whole: the weights must be those of the whole model, as those of a resumed run.

        Raises:
            WeightsError: naming the file: it cannot be read, or its weights fit the model in part
                or not at all (:func:`check_fit`).
        """
        resumed = checkpointables is None and bool(self.checkpointables)
        self._whole = whole or resumed
        where = "checkpoint" if resumed else "MODEL.WEIGHTS"
        try:
            return super().load(path, checkpointables)
        except WeightsError as error:
            text = str(error) if path in str(error) else f"{path}: {error}"
            raise WeightsError(f"{where} {text}") from error
        except (AssertionError, OSError) as error:  # no such file, or an address that is not served
            text = " ".join(str(error).split())
            raise WeightsError(f"{where} {path!r} cannot be read: {text}") from error

    def load_all(self, path: str) -> None:
        """Loads weights for the whole model; other states in the file are left alone.

        Raises:
            WeightsError: the file has no weights, or others, for a part of the model.
        """
        self.load(path, checkpointables=[], whole=True)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if checkpoint.get("matching_heuristics", False):
            self.loaded_supernet = False
            incompatible = super()._load_model(checkpoint)
            if len(incompatible.missing_keys) >= len(self.model.state_dict()):
                raise WeightsError("no tensor of the model is in the weights")
            return incompatible
        state = weights_of(checkpoint, self.model)
        self.loaded_supernet = is_supernet(state)
        checkpoint["model"] = adapt_state_dict(state, self.model)
        check_fit(checkpoint["model"], self.model, whole=self._whole)
        return super()._load_model(checkpoint)


def write_checkpoint(target: str, data: dict[str, Any]) -> None:
    """Writes a file that appears whole or not at all.

    Raises:
        OSError: naming the file.
    """
    try:
        with new_file(target) as temporary, open(temporary, "wb") as file:
            torch.save(data, file)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError):
            raise
        # torch only says "unexpected pos" where a disk is full.
        raise OSError(cause.errno, cause.strerror, target) from error


def weights_of(checkpoint: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a checkpoint that was read, without what wrappers put before their names.

    Raises:
        WeightsError: they are no tensors of finite numbers.
    """
    found = checkpoint["model"].items()
    state = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in found}
    check_numbers(state)
    return strip_shared_prefixes(state, model)


def has_checkpoints(folder: str) -> bool:
    """Whether a training has left something in ``folder`` to go on from."""
    return os.path.isdir(folder) and any(name.startswith("model_") for name in os.listdir(folder))


def _number(name: str) -> int:
    """Iteration in the name of a periodic checkpoint."""
    match = _PERIODIC.fullmatch(name)
    assert match is not None
    return int(match[1])
