"""How far a training and its evaluations are: for who listens (:mod:`detnas_d2.engine.telling`)
and for TensorBoard.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter, TensorboardXWriter

from detnas_d2.engine.outlook import steps_of
from detnas_d2.engine.telling import tell, tell_part
from detnas_d2.evaluation.passes import counted
from detnas_d2.evaluation.scoring import DEFAULT_METRICS

_LOSS = "total_loss"
_TEXTS = {
    "supernet/score_mean": "fixed paths {:.2f}",
    **{metric: metric + " {:.2f}" for metric in DEFAULT_METRICS.values()},
    "arch/expected_gmacs": "expected {:.3g} GMACs",
}
"""What a training writes down -> its text after the loss."""


class TellProgress(HookBase):
    """Tells after every iteration how far the training is, its loss and its last evaluation.

    The time left is measured from the end of the first iteration of this start, which takes longer
    than others, and counts an iteration with two steps twice.
    """

    def __init__(self, cfg: CfgNode, clock: Callable[[], float] = time.monotonic) -> None:
        self._cfg, self._clock = cfg, clock
        self._begin: tuple[float, int] | None = None

    def before_train(self) -> None:
        self._begin = None
        tell("iterations", self.trainer.start_iter, self.trainer.max_iter)

    def after_step(self) -> None:
        done, total = self.trainer.iter + 1, self.trainer.max_iter
        tell("iterations", done, total, eta=self._seconds_left(done, total), note=self._note())

    def _seconds_left(self, done: int, total: int) -> float | None:
        now, steps = self._clock(), steps_of(self._cfg, done)
        if self._begin is None:
            self._begin = now, steps
            return None
        begin, first = self._begin
        return (now - begin) / (steps - first) * (steps_of(self._cfg, total) - steps)

    def _note(self) -> str:
        storage = self.trainer.storage
        known = storage.latest()
        loss = [f"loss {storage.history(_LOSS).median(20):.3f}"] if _LOSS in known else []
        rest = [text.format(known[name][0]) for name, text in _TEXTS.items() if name in known]
        return ", ".join([*loss, *rest])


class Events(EventWriter):
    """Detectron2's writer for TensorBoard, without points twice after a training was resumed.

    What the starts before wrote about iterations that this one runs again is marked as void.

    Args:
        first: the first iteration of this start, called when it is known.
    """

    def __init__(self, folder: str, first: Callable[[], int]) -> None:
        self._folder, self._first = folder, first
        self._writer: TensorboardXWriter | None = None

    def write(self) -> None:
        if self._writer is None:
            self._writer = TensorboardXWriter(self._folder, purge_step=self._first() or None)
        self._writer.write()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class ToldLoader:
    """A loader of test images that tells how much of it was read."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return counted(self.loader, lambda done, total: tell_part("evaluating", done, total))
