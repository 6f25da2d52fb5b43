"""BatchNorm statistics of a candidate, apart from the supernet (DetNAS section 3.3).

The statistics of a path are pooled over all calibration images: mean and variance of everything a
BatchNorm sees, merged batch by batch with Chan's parallel update. They are a value of their own
(:class:`BNStatistics`) that :func:`installed` lends to a model for the duration of a call; the
supernet's own running statistics are never written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detnas_d2.evaluation.moments import Moments, moments_of, pool
from detnas_d2.evaluation.ranks import all_or_none
from detnas_d2.layers.batch_statistics import COLLECTOR
from detnas_d2.ops import BNStats, bn_stats


@dataclass
class BNStatistics:
    """Recalibrated statistics of one candidate: module name -> pooled moments.

    Only modules that ran during calibration are in it.
    """

    moments: dict[str, Moments] = field(default_factory=dict)

    def merge(self, other: BNStatistics) -> None:
        pool(self.moments, other.moments.items())

    def check_finite(self) -> None:
        """Raises FloatingPointError naming the first module whose statistics are not finite."""
        for name, moments in self.moments.items():
            if not (moments.mean.isfinite().all() and moments.m2.isfinite().all()):
                raise FloatingPointError(f"recalibrated statistics of {name} are not finite")

    def cpu(self) -> BNStatistics:
        return BNStatistics({name: moments.cpu() for name, moments in self.moments.items()})


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """BatchNorms of a model that keep running statistics, by module name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


class Collector(Protocol):
    """Where :func:`collecting` puts what the BatchNorms see."""

    def wants(self, name: str) -> bool:
        """Whether the statistics of the module's next input are needed."""

    def add(self, name: str, stats: BNStats) -> None: ...


class BatchCollector:
    """Pools everything that BatchNorms see, a batch at a time.

    Attributes:
        statistics: of the batches that ended.
    """

    def __init__(self) -> None:
        self.statistics = BNStatistics()
        self._batch: list[tuple[str, BNStats]] = []

    def wants(self, name: str) -> bool:
        return True

    def add(self, name: str, stats: BNStats) -> None:
        self._batch.append((name, stats))

    def end_batch(self) -> None:
        pool(self.statistics.moments, moments_of(self._batch))
        self._batch.clear()


@contextmanager
def collecting(model: nn.Module, collector: Collector) -> Iterator[None]:
    """Within the block every BatchNorm normalises with the statistics of its own batch and adds
    them to ``collector``; running statistics, momentum counters and other ranks are left alone.
    A BatchNorm that runs several times in one forward adds all its inputs.
    """
    modules = batch_norms(model)
    for name, module in modules.items():
        collect = partial(_collect, collector, name)
        # Where the fused operators run a BatchNorm, they hand over the statistics they made.
        setattr(module, COLLECTOR, collect)
        # An instance attribute shadows the class's forward; deleting it restores the module.
        module.forward = partial(_batch_statistics_forward, module, collect)
    try:
        yield
    finally:
        for module in modules.values():
            del module.forward
            delattr(module, COLLECTOR)


def _collect(collector: Collector, name: str, stats: BNStats) -> None:
    if collector.wants(name):
        collector.add(name, stats)


def _batch_statistics_forward(
    module: _BatchNorm, collect: Callable[[BNStats], None], x: Tensor
) -> Tensor:
    # In float32 at least: half precision cannot hold sums of squares.
    maps = x.detach().reshape(*x.shape[:2], -1, 1) if x.dim() != 4 else x.detach()
    stats = bn_stats(maps)
    collect(stats)
    if x.numel() == 0:
        return x
    dtype = module.running_mean.dtype
    variance = stats.m2 / stats.count.to(stats.m2)
    return F.batch_norm(
        x, stats.mean.to(dtype), variance.to(dtype), module.weight, module.bias, eps=module.eps
    )


class Loan:
    """Statistics of one candidate, ready to be lent to a model's BatchNorms again and again.

    Args:
        modules: see :func:`batch_norms`.

    Raises:
        KeyError: the statistics name a module that the model does not have.
    """

    def __init__(self, modules: Mapping[str, _BatchNorm], statistics: BNStatistics) -> None:
        self._buffers: list[tuple[_BatchNorm, Tensor, Tensor]] = []
        for name, moments in statistics.moments.items():
            if name not in modules:
                raise KeyError(f"statistics of {name!r}, but the model has no such BatchNorm")
            if moments.count == 0:  # it ran, but saw nothing
                continue
            module = modules[name]
            mean = moments.mean.to(module.running_mean)
            self._buffers.append((module, mean, moments.variance.to(module.running_var)))

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Lends the statistics; the modules' own buffers return afterwards."""
        own = [(module, module.running_mean, module.running_var) for module, *_ in self._buffers]
        try:
            for module, mean, var in self._buffers:
                module.running_mean, module.running_var = mean, var
            yield
        finally:
            for module, mean, var in own:
                module.running_mean, module.running_var = mean, var


@contextmanager
def installed(model: nn.Module, statistics: BNStatistics) -> Iterator[None]:
    """Lends ``statistics`` to the model's BatchNorms, see :class:`Loan`."""
    with Loan(batch_norms(model), statistics).installed():
        yield


def calibration_forward(model: nn.Module) -> tuple[Callable[[list[dict]], object], bool]:
    """The smallest part of a model whose forward reaches every BatchNorm.

    Returns:
        a function of a batch (list of Detectron2 dicts), and whether it needs training mode with
        ground truth (neck and head with BatchNorm: the whole model runs) or images only.
    """
    names = list(batch_norms(model))
    backbone = getattr(model, "backbone", None)
    if backbone is not None and all(name.startswith("backbone.") for name in names):
        part: nn.Module = backbone
        bottom_up = getattr(backbone, "bottom_up", None)
        if bottom_up is not None and all(n.startswith("backbone.bottom_up.") for n in names):
            part = bottom_up

        def images_only(batch: list[dict]) -> object:
            images = model.preprocess_image(batch)
            return part(getattr(images, "tensor", images))

        return images_only, False
    return model, True


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    batches: Iterable[tuple[int, list[dict]]],
    *,
    seed: int = 0,
    forward: Callable[[list[dict]], object] | None = None,
) -> BNStatistics:
    """Statistics of the model (of its active path) over calibration batches, merged over ranks.

    A batch is the unit of normalisation: ranks share whole batches, so the result does not depend
    on how many there are (but for rounding). Random choices of the model (proposal sampling) are
    seeded by batch.

    Args:
        model: a Detectron2 model; its mode, parameters and buffers are the same afterwards.
        batches: (number of the batch, list of Detectron2 dicts); this rank's share.
        seed: seed of the model's random choices.
        forward: what to run, the smallest sufficient part of the model by default.

    Returns:
        the statistics of every BatchNorm that ran; empty for a model without BatchNorm.

    Raises:
        ValueError: no batch on any rank.
        FloatingPointError: statistics that are not finite (diverged weights), naming the module.
    """
    if not batch_norms(model):
        return BNStatistics()
    needs_training = True
    if forward is None:
        forward, needs_training = calibration_forward(model)
    collector = BatchCollector()
    with all_or_none(), calibrating(model, collector, training=needs_training):
        for number, batch in batches:
            seed_batch(seed, number)
            forward(batch)
            collector.end_batch()
    merged = merge_over_ranks(collector.statistics)
    if not merged.moments:
        raise ValueError("no calibration batch: the calibration data set is empty")
    merged.check_finite()
    return merged


@contextmanager
def calibrating(model: nn.Module, collector: Collector, *, training: bool) -> Iterator[None]:
    """:func:`collecting` in the mode that the forward pass needs, with random numbers of its own;
    modes and random state return afterwards.
    """
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    try:
        with EventStorage(0), torch.random.fork_rng(devices=devices), collecting(model, collector):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def seed_batch(seed: int, number: int) -> None:
    """Seeds the model's random choices (proposal sampling) on a calibration batch."""
    torch.manual_seed((seed * 1_000_003 + number) % 2**63)


def merge_over_ranks(statistics: BNStatistics) -> BNStatistics:
    """The ranks' statistics merged in rank order; the same value on every rank."""
    if comm.get_world_size() == 1:
        return statistics
    payload: list[Mapping[str, Moments]] = comm.all_gather(statistics.cpu().moments)
    merged = BNStatistics()
    for moments in payload:
        merged.merge(BNStatistics(dict(moments)))
    return merged
