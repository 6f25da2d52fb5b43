"""CUDA graphs of functions, by torch.cuda.graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor


class CudaGraphs:
    """Captures what a function launches on a GPU.

    Graphs of a device share one pool of memory: they run one after the other, and nothing outside
    reads what they keep in it.
    """

    def __init__(self) -> None:
        self._devices: dict[torch.device, _Device] = {}

    def refuses(self, x: Tensor) -> str | None:
        """Why a function of such an input is not captured; None: it can be."""
        return None if x.is_cuda else "the model is not on a GPU"

    def capture(self, function: Callable[[], None], device: torch.device) -> Callable[[], None]:
        """A function that launches again, on the same memory, what ``function`` does.

        The function runs twice: once on a stream of its own, then to be captured.

        Raises:
            RuntimeError: it waits for the device, or does something else that a graph cannot.
        """
        with torch.cuda.device(device):
            if device not in self._devices:
                self._devices[device] = _Device()
            return self._devices[device].capture(function)


class _Device:
    """Stream and memory that graphs of the current device are captured with."""

    def __init__(self) -> None:
        self._stream: Any = torch.cuda.Stream()
        self._live: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        self._pool: Any = None

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        current = torch.cuda.current_stream()
        # Libraries make their workspaces for a stream at the first call on it.
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            function()
        current.wait_stream(self._stream)
        if not self._live:  # a pool ends with its last graph
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        done = False
        try:
            # Threads of loaders may use CUDA meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                function()
            done = True
        finally:
            torch.cuda.set_stream(current)  # a failed capture leaves the other one
            if not done:
                self._live = WeakSet()  # whatever became of the pool
        self._live.add(graph)
        return graph.replay
