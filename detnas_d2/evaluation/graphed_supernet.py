"""A supernet whose paths are replayed from graphs, with the statistics that they report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detnas_d2.evaluation.graphs import Call, GraphedCalls, Result
from detnas_d2.layers.batch_norm_mode import OnStats, stats_hook
from detnas_d2.layers.folded_norm import kept_folds
from detnas_d2.layers.fused_ops import hooked
from detnas_d2.modeling import Supernet, find_supernet, running_through
from detnas_d2.ops import BNStats
from detnas_d2.utils.compat import has_global_hook
from detnas_d2.utils.cuda_graphs import CudaGraphs


def graphed_calls(model: nn.Module, setting: str) -> GraphedCalls | None:
    """What replays the DetNAS supernet of a model; None where nothing can be.

    Args:
        setting: the config key ``SEARCH.CUDA_GRAPHS``, "auto" or "off".
    """
    supernet = find_supernet(model)
    if setting == "off" or not torch.cuda.is_available() or not isinstance(supernet, Supernet):
        return None
    return GraphedCalls(CudaGraphs(), supernet.autotune)


class Reports:
    """Statistics that BatchNorms report, handed on.

    Args:
        then: takes them.
    """

    def __init__(self, then: OnStats) -> None:
        self.then = then
        self._held: list[tuple[str, BNStats]] | None = None

    def __call__(self, name: str, stats: BNStats) -> None:
        if self._held is None:
            self.then(name, stats)
        else:
            self._held.append((name, stats))

    @contextmanager
    def held(self) -> Iterator[list[tuple[str, BNStats]]]:
        """Within the block they are added to a list instead."""
        before, self._held = self._held, []
        try:
            yield self._held
        finally:
            self._held = before


@contextmanager
def graphed(
    model: nn.Module, graphs: GraphedCalls | None, work: str, reports: Reports | None = None
) -> Iterator[None]:
    """Within the block the paths of the model's DetNAS supernet run through ``graphs``, which are
    dropped afterwards; other models run as they are.

    A path is called from where it parts from the one before, so that a graph belongs to a path, the
    depth it begins at, and the size of the images. Weights must not be written through ``.data``
    within the block, nor hooks be added to the supernet's modules.

    Args:
        work: what the paths do: "recalibration" or "evaluation".
        reports: what their BatchNorms report to.
    """
    supernet = find_supernet(model)
    if graphs is None or not isinstance(supernet, Supernet):
        yield
        return
    inner = (module for module in supernet.modules() if module is not supernet)
    if has_global_hook() or any(map(hooked, inner)):
        graphs.tell("hooks of modules would not run")
        yield
        return
    known: dict[object, list[nn.Module]] = {}

    def around(
        start: int, depths: tuple[int, ...], layers: Callable[[Tensor], list[Tensor]], x: Tensor
    ) -> list[Tensor]:
        walk, path = supernet.walk, supernet.active_path
        batches = 1 if walk is None else walk.batches
        key = (path.choices, start, depths, batches)
        if key not in known:
            known[key] = [m for part in supernet.path_modules(start) for m in part.modules()]

        def run(x: Tensor) -> Result:
            if reports is None:
                return layers(x), ()
            with reports.held() as seen:
                found = layers(x)
            tensors = [t for _, stats in seen for t in stats]
            return [*found, *tensors], tuple(name for name, _ in seen)

        call = Call(
            key=key,
            work=f"{work}, layers from {start} on" + (f", {batches} batches" * (batches > 1)),
            run=run,
            state=lambda: _state(known[key]),
            kept=lambda: kept_folds(known[key]),
        )
        found, names = graphs.run(call, x)
        assert isinstance(names, tuple)
        count = len(found) - 3 * len(names)
        for i, name in enumerate(names):
            assert reports is not None
            reports(name, BNStats(*found[count + 3 * i : count + 3 * i + 3]))
        return found[:count]

    try:
        with running_through(supernet, around):
            yield
    finally:
        graphs.clear()


def _state(modules: list[nn.Module]) -> list[Tensor]:
    """Parameters and buffers; not of BatchNorms that replace theirs at every call."""
    found: list[Tensor | None] = []
    for module in modules:
        found += module._parameters.values()
        if not isinstance(module, _BatchNorm) or stats_hook(module) is None:
            found += module._buffers.values()
    return [t for t in found if t is not None]
