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

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detnas_d2.layers.fused_shuffle import COLLECTOR
from detnas_d2.ops import BNStats
from detnas_d2.search.ranks import all_or_none


@dataclass
class Moments:
    """Pooled first and second moments of C channels.

    Args:
        count: number of samples (N * H * W, summed over batches).
        mean: (C,) float64.
        m2: (C,) float64, sum of squared deviations from the mean.
    """

    count: int
    mean: Tensor
    m2: Tensor

    @staticmethod
    def of(x: Tensor) -> Moments:
        """Moments of one batch (N, C, ...), C >= 1; the batch may be empty."""
        flat = x.detach().transpose(0, 1).flatten(1)
        count = flat.size(1)
        if count == 0:
            zeros = torch.zeros(flat.size(0), dtype=torch.float64, device=x.device)
            return Moments(0, zeros, zeros.clone())
        var, mean = torch.var_mean(flat.double(), dim=1, correction=0)
        return Moments(count, mean, var * count)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of samples together (Chan, Golub, LeVeque 1979)."""
        if other.count == 0:
            return self
        if self.count == 0:
            return other
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2 + delta.square() * (self.count * other.count / count)
        return Moments(count, mean, m2)

    @property
    def variance(self) -> Tensor:
        """Unbiased variance (C,), as BatchNorm's running_var; biased for a single sample."""
        return self.m2 / max(self.count - 1, 1)

    def cpu(self) -> Moments:
        return Moments(self.count, self.mean.cpu(), self.m2.cpu())


@dataclass
class BNStatistics:
    """Recalibrated statistics of one candidate: module name -> pooled moments.

    Only modules that ran during calibration are in it.
    """

    moments: dict[str, Moments] = field(default_factory=dict)

    def add(self, name: str, batch: Moments) -> None:
        seen = self.moments.get(name)
        self.moments[name] = batch if seen is None else seen.merge(batch)

    def merge(self, other: BNStatistics) -> None:
        for name, moments in other.moments.items():
            self.add(name, moments)

    def cpu(self) -> BNStatistics:
        return BNStatistics({name: moments.cpu() for name, moments in self.moments.items()})


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """BatchNorms of a model that keep running statistics, by module name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


@contextmanager
def collecting(model: nn.Module) -> Iterator[BNStatistics]:
    """Within the block every BatchNorm normalises with the statistics of its own batch and adds
    them to the yielded :class:`BNStatistics`; running statistics, momentum counters and other
    ranks are left alone. A BatchNorm that runs several times in one forward pools all its inputs.
    """
    statistics = BNStatistics()
    modules = batch_norms(model)
    for name, module in modules.items():
        # Where the fused operators run a BatchNorm, they hand over the statistics they made.
        setattr(module, COLLECTOR, partial(_add_fused, partial(statistics.add, name)))
        # An instance attribute shadows the class's forward; deleting it restores the module.
        module.forward = partial(_batch_statistics_forward, module, partial(statistics.add, name))
    try:
        yield statistics
    finally:
        for module in modules.values():
            del module.forward
            delattr(module, COLLECTOR)


def _add_fused(add: Callable[[Moments], None], stats: BNStats) -> None:
    add(Moments(int(stats.count), stats.mean.double(), stats.m2.double()))


def _batch_statistics_forward(
    module: _BatchNorm, add: Callable[[Moments], None], x: Tensor
) -> Tensor:
    add(Moments.of(x))
    if x.numel() == 0:
        return x
    if x.numel() == x.size(1):
        # One value per channel: F.batch_norm refuses it; its normalised value is 0.
        y = torch.zeros_like(x)
        return y if module.bias is None else y + module.bias.view(1, -1, *[1] * (x.dim() - 2))
    return F.batch_norm(x, None, None, module.weight, module.bias, True, 0.0, module.eps)


@contextmanager
def installed(model: nn.Module, statistics: BNStatistics) -> Iterator[None]:
    """Lends ``statistics`` to the model's BatchNorms; their own buffers return afterwards.

    Raises:
        KeyError: the statistics name a module that the model does not have.
    """
    modules = batch_norms(model)
    own: dict[str, tuple[Tensor, Tensor]] = {}
    try:
        for name, moments in statistics.moments.items():
            if name not in modules:
                raise KeyError(f"statistics of {name!r}, but the model has no such BatchNorm")
            if moments.count == 0:  # it ran, but saw nothing
                continue
            module = modules[name]
            own[name] = (module.running_mean, module.running_var)
            module.running_mean = moments.mean.to(own[name][0])
            module.running_var = moments.variance.to(own[name][1])
        yield
    finally:
        for name, (mean, var) in own.items():
            modules[name].running_mean, modules[name].running_var = mean, var


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
    modes = {module: module.training for module in model.modules()}
    model.train(needs_training)
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    try:
        with (
            all_or_none(),
            EventStorage(0),
            torch.random.fork_rng(devices=devices),
            collecting(model) as statistics,
        ):
            for number, batch in batches:
                torch.manual_seed((seed * 1_000_003 + number) % 2**63)
                forward(batch)
    finally:
        for module, mode in modes.items():
            module.training = mode
    merged = merge_over_ranks(statistics)
    if not merged.moments:
        raise ValueError("no calibration batch: the calibration data set is empty")
    for name, moments in merged.moments.items():
        if not (moments.mean.isfinite().all() and moments.m2.isfinite().all()):
            raise FloatingPointError(f"recalibrated statistics of {name} are not finite")
    return merged


def merge_over_ranks(statistics: BNStatistics) -> BNStatistics:
    """The ranks' statistics merged in rank order; the same value on every rank."""
    if comm.get_world_size() == 1:
        return statistics
    payload: list[Mapping[str, Moments]] = comm.all_gather(statistics.cpu().moments)
    merged = BNStatistics()
    for moments in payload:
        merged.merge(BNStatistics(dict(moments)))
    return merged
