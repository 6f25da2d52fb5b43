"""Trainings of several networks in turns, on the same batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from detnas_d2.config.tools import differing_keys
from detnas_d2.engine.scripted import plain_torchscript
from detnas_d2.engine.trainers.trainer import Trainer
from detnas_d2.utils.errors import InputError

logger = logging.getLogger("detnas_d2")

_OWN = ("MODEL", "OUTPUT_DIR", "SEARCH", "SUPERNET")
"""What the configs of networks that are trained together may differ in."""


def check_together(configs: Sequence[CfgNode]) -> None:
    """Raises InputError, naming the keys, if trainings do not see the same batches for as long."""
    for cfg in configs[1:]:
        keys = differing_keys(configs[0], cfg, _OWN)
        if keys:
            raise InputError(
                f"networks that are trained together differ in {', '.join(keys)}: expected the "
                "same images, seed and schedule; train them apart"
            )


@plain_torchscript()
def train_together(trainers: Sequence[Trainer]) -> list[Any]:
    """Trains networks to their last iteration, a batch at a time: it is loaded once, and each of
    them takes an update on it. All are in memory, of the batches one.

    Everything random in a step follows from seed and iteration, so each gets, to the bit, what its
    own training (:meth:`Trainer.train`) gives it: checkpoints, logs and results. Networks that were
    resumed at different iterations wait for the last one. What a training loads besides its batches
    (statistics of BatchNorms, evaluations) it loads itself.

    Args:
        trainers: resumed or loaded; of configs that :func:`check_together` allows.

    Returns:
        the results of the final evaluation of each, see :meth:`Trainer.train`.
    """
    behind = [trainer for trainer in trainers if trainer.start_iter < trainer.max_iter]
    if behind:
        first = min(trainer.start_iter for trainer in behind)
        batch = _Batch()
        for trainer in behind:
            trainer.data()
            trainer.step.set_data(batch)
        source = iter(behind[0].batches(first))
        with ExitStack() as stack:
            for trainer in behind:
                stack.enter_context(_begun(trainer))
            stack.enter_context(_logged())
            for iteration in range(first, behind[0].max_iter):
                batch.value = next(source)
                for trainer in behind:
                    if iteration >= trainer.start_iter:
                        _step(trainer, iteration)
            for trainer in behind:
                trainer.iter = trainer.max_iter
    # What was finished before is evaluated.
    return [trainer.results if trainer in behind else trainer.train() for trainer in trainers]


class _Batch:
    """Gives the same batch to whoever asks, until there is another one."""

    value: Any = None

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self.value


@contextmanager
def _begun(trainer: Trainer) -> Iterator[None]:
    """A training between its beginning and its end, which comes at the end of the block."""
    trainer.iter, trainer.storage = trainer.start_iter, EventStorage(trainer.start_iter)
    with trainer.storage:
        trainer.before_train()
    try:
        yield
    finally:
        with trainer.storage:
            trainer.after_train()


@contextmanager
def _logged() -> Iterator[None]:
    try:
        yield
    except Exception:
        logger.exception("Exception during training:")
        raise


def _step(trainer: Trainer, iteration: int) -> None:
    trainer.iter = iteration
    with trainer.storage:
        trainer.before_step()
        trainer.run_step()
        trainer.after_step()
