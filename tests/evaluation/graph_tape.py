"""A graph backend for the CPU that behaves as CUDA graphs do.

What operators do to tensors is written down while a function runs, and done again to the same
tensors at every replay: no Python of the function runs, weights are those of the capture, results
lie where they lay.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detnas_d2.ops.autotune import AutotuneCache, Trial
from detnas_d2.ops.registration import tensors


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], None]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        self.steps.append(partial(_again, func, args, kwargs, list(tensors(found))))
        return found


def _again(func, args: tuple, kwargs: dict, outputs: list[Tensor]) -> None:
    inputs = {id(t) for t in tensors([*args, *kwargs.values()])}
    for before, now in zip(outputs, tensors(func(*args, **kwargs)), strict=True):
        if id(before) not in inputs and before.data_ptr() != now.data_ptr():
            before.copy_(now)


class TapeGraphs:
    """See the module.

    Args:
        refused: why no call is captured.
        error: raised by the n-th capture and those after.
        corrupt: the number of a capture whose replays do something else; -1: none.
    """

    def __init__(
        self, *, refused: str | None = None, error: Exception | None = None, corrupt: int = -1
    ) -> None:
        self.refused, self.error, self.corrupt = refused, error, corrupt
        self.captures = self.replays = 0

    def refuses(self, x: Tensor) -> str | None:
        return self.refused

    def capture(self, function: Callable[[], None], device: torch.device) -> Callable[[], None]:
        if self.error is not None:
            raise self.error
        function()  # warms up
        with _Recorder() as recorder:
            function()
        number, self.captures = self.captures, self.captures + 1

        def replay() -> None:
            self.replays += 1
            for step in recorder.steps[: -1 if number == self.corrupt else None]:
                step()

        return replay


class Prefers(AutotuneCache):
    """Uses graphs, or calls, whatever takes longer; of graphs those that are right."""

    def __init__(self, graphs: bool = True) -> None:
        super().__init__()
        self.graphs = graphs
        self.asked: list[str] = []

    def use_graph(self, work: str, trial: Callable[[], Trial]) -> bool:
        if work not in self.asked:
            self.asked.append(work)
            tried = trial()
            assert tried.check().agrees
            for way in (tried.operators, tried.modules):
                way()
        return self.graphs
