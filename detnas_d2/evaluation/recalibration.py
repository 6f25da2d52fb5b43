"""BatchNorm statistics of a candidate, apart from the supernet (DetNAS section 3.3).

The statistics of a path are pooled over all calibration images: mean and variance of everything a
BatchNorm sees, merged batch by batch with Chan's parallel update. They are a value of their own
(:class:`BNStatistics`), with which :func:`override_bn_stats` overrides a model's for the duration
of a call; the supernet's own running statistics are never written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detnas_d2.evaluation.box_head_calibration import up_to_last_norm
from detnas_d2.evaluation.moments import Moments, moments_of, pool
from detnas_d2.evaluation.ranks import all_or_none
from detnas_d2.layers.batch_norm_mode import OnStats, batch_norms, in_mode, use_batch_statistics
from detnas_d2.layers.kept_weights import weights_stay
from detnas_d2.ops import BNStats


class NumberedBatches(Protocol):
    """This rank's calibration batches, with their numbers among those of all ranks."""

    batch_ids: tuple[int, ...]

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[dict[str, Any]]]: ...


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


class BatchCollector:
    """Pools everything that BatchNorms see, a batch at a time.

    Attributes:
        statistics: of the batches that ended.
    """

    def __init__(self) -> None:
        self.statistics = BNStatistics()
        self._batch: list[tuple[str, BNStats]] = []

    def add(self, name: str, stats: BNStats) -> None:
        self._batch.append((name, stats))

    def end_batch(self) -> None:
        pool(self.statistics.moments, moments_of(self._batch))
        self._batch.clear()


class BNOverride:
    """Statistics of one candidate, ready to be used by a model's BatchNorms again and again.

    Args:
        modules: see :func:`detnas_d2.layers.batch_norm_mode.batch_norms`.

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
    def applied(self) -> Iterator[None]:
        """Within the block they are the modules' running statistics."""
        own = [(module, module.running_mean, module.running_var) for module, *_ in self._buffers]
        try:
            for module, mean, var in self._buffers:
                module.running_mean, module.running_var = mean, var
            yield
        finally:
            for module, own_mean, own_var in own:
                module.running_mean, module.running_var = own_mean, own_var


@contextmanager
def override_bn_stats(model: nn.Module, statistics: BNStatistics) -> Iterator[None]:
    """Within the block the model's BatchNorms have ``statistics``, see :class:`BNOverride`."""
    with BNOverride(batch_norms(model), statistics).applied():
        yield


def calibration_part(model: nn.Module) -> nn.Module | None:
    """The smallest part of a model that has all its BatchNorms and needs nothing but images: the
    backbone, or what is below its neck; None where the whole model has to run."""
    names = list(batch_norms(model))
    backbone: nn.Module | None = getattr(model, "backbone", None)
    if backbone is None or not all(name.startswith("backbone.") for name in names):
        return None
    bottom_up: nn.Module | None = getattr(backbone, "bottom_up", None)
    if bottom_up is not None and all(n.startswith("backbone.bottom_up.") for n in names):
        return bottom_up
    return backbone


def images_of(model: nn.Module, batch: list[dict[str, Any]]) -> Tensor:
    """A batch (list of Detectron2 dicts) as its backbone takes it, (N, 3, H, W)."""
    preprocess_image: Any = model.preprocess_image  # may be shared within a block
    images = preprocess_image(batch)
    tensor: Tensor = getattr(images, "tensor", images)
    return tensor


def calibration_forward(model: nn.Module) -> tuple[Callable[[list[dict[str, Any]]], object], bool]:
    """The smallest part of a model whose forward reaches every BatchNorm.

    Returns:
        a function of a batch (list of Detectron2 dicts), and whether it needs training mode with
        ground truth (head with BatchNorm: the model runs, see :func:`up_to_last_norm`) or images
        only.
    """
    part = calibration_part(model)
    if part is None:
        return up_to_last_norm(model, batch_norms(model)) or model, True
    return lambda batch: part(images_of(model, batch)), False


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    batches: Iterable[tuple[int, list[dict[str, Any]]]],
    *,
    seed: int = 0,
    forward: Callable[[list[dict[str, Any]]], object] | None = None,
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
    with all_or_none(), calibrating(model, collector.add, training=needs_training):
        for number, batch in batches:
            seed_batch(seed, number)
            forward(batch)
            collector.end_batch()
    merged = merge_over_ranks(collector.statistics)
    if not merged.moments:
        raise ValueError("no calibration batch: the calibration dataset is empty")
    merged.check_finite()
    return merged


@contextmanager
def calibrating(model: nn.Module, on_stats: OnStats, *, training: bool) -> Iterator[None]:
    """:func:`use_batch_statistics` in the mode that the forward pass needs, with random numbers of
    its own; modes and random state return afterwards.
    """
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    with (
        in_mode(model, training=training),
        EventStorage(0),
        torch.random.fork_rng(devices=devices),
        use_batch_statistics(model, on_stats),
        weights_stay(model),
    ):
        yield


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
