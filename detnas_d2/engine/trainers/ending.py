"""The test at the end of a training, which an interrupted one does not get."""

from __future__ import annotations

from detectron2.engine.hooks import EvalHook


class EvalAtTheEnd(EvalHook):
    """Detectron2's hook, for which a training that was interrupted after its last update, as in the
    BatchNorm statistics, has ended: it would be tested before the interruption goes on, and an
    error of that test would take its place.
    """

    def __init__(self, hook: EvalHook) -> None:
        """Takes the place of ``hook``."""
        self.__dict__.update(hook.__dict__)

    def after_train(self) -> None:
        # The loop counts its last iteration when nothing was raised in it.
        if self.trainer.iter < self.trainer.max_iter:
            del self._func  # as Detectron2's does at the end: it holds the trainer
        else:
            super().after_train()
