"""Precise BatchNorm statistics during training, the same in a resumed run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from detectron2.engine.hooks import PreciseBN
from detectron2.utils import comm

from detnas_d2.engine.telling import tell_part
from detnas_d2.engine.trainers.iteration import (
    iteration_seed,
    loss_normalizers,
    set_loss_normalizers,
)


class SeededPreciseBN(PreciseBN):
    """Detectron2's hook (``TEST.PRECISE_BN``), its batches and draws a function of the iteration.

    Statistics after iteration i come from the batches i + 1, i + 2, ... of training, where
    Detectron2's hook goes on from where it stopped the time before, which a new process has
    forgotten. The loss normaliser is left as training made it. How far it is is told, for at the
    end of a short training it takes as long as all before.
    """

    def __init__(self, hook: PreciseBN, seed: int) -> None:
        """Takes the place of ``hook``, whose loader is one of :func:`build_train_loader`."""
        super().__init__(hook._period, hook._model, hook._data_loader, hook._num_iter)
        self._seed = seed

    def update_stats(self) -> None:
        if self._disabled:
            return
        done = self.trainer.iter + 1
        self._data_loader.batch_sampler.start_batch = done
        self._data_iter = self._told_batches()
        normalizers = loss_normalizers(self._model)
        torch.manual_seed(iteration_seed(self._seed + 2, done, comm.get_rank()))
        super().update_stats()
        set_loss_normalizers(self._model, normalizers)

    def _told_batches(self) -> Iterator[Any]:
        for done, batch in enumerate(self._data_loader):
            tell_part("BatchNorm statistics", done, self._num_iter)
            yield batch
