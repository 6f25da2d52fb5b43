"""Modes of BatchNorms next to training and evaluation: statistics of the batch alone.

:func:`use_batch_statistics` is recalibration's, :func:`frozen_statistics` that of a second pass
over a batch. Both hold for a ``with`` block and for BatchNorms of any class, also of other models.
Layers that run a BatchNorm without calling its module (``fused_ops``) ask :func:`stats_hook` and
:func:`uses_batch_statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detnas_d2.ops import BNStats, bn_stats

OnStats = Callable[[str, BNStats], None]
"""Gets the name of a BatchNorm and the statistics of an input of it."""


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """BatchNorms of a model that keep running statistics, by module name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def input_stats(x: Tensor) -> BNStats:
    """Statistics of a BatchNorm's input (N, C, ...), in float32 at least: half precision cannot
    hold sums of squares."""
    if x.dim() != 4:
        x = x.reshape(*x.shape[:2], math.prod(x.shape[2:]), 1)
    return bn_stats(x)


class StatsHook:
    """The forward pre-hook of a BatchNorm in evaluation mode: it normalises with what it gets.

    The statistics of the input take the place of the running ones until the ``with`` block of
    :func:`use_batch_statistics` ends.

    Attributes:
        report: takes the statistics of each input.
    """

    def __init__(self, name: str, on_stats: OnStats | None) -> None:
        self._name = name
        self._on_stats = on_stats

    def report(self, stats: BNStats) -> None:
        if self._on_stats is not None:
            self._on_stats(self._name, stats)

    def __call__(self, norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        stats = input_stats(x)
        self.report(stats)
        if x.numel():
            assert norm.running_mean is not None
            dtype = norm.running_mean.dtype
            norm.running_mean = stats.mean.to(dtype)
            norm.running_var = (stats.m2 / stats.count.to(stats.m2)).to(dtype)


def stats_hook(norm: _BatchNorm) -> StatsHook | None:
    """The hook of a BatchNorm within :func:`use_batch_statistics`."""
    for hook in norm._forward_pre_hooks.values():
        if isinstance(hook, StatsHook):
            return hook
    return None


def uses_batch_statistics(norm: _BatchNorm) -> bool:
    """Whether it normalises with its batch's statistics: in training and in recalibration."""
    return norm.training or (bool(norm._forward_pre_hooks) and stats_hook(norm) is not None)


@contextmanager
def use_batch_statistics(
    model: nn.Module,
    on_stats: OnStats | None = None,
    *,
    norms: Mapping[str, _BatchNorm] | None = None,
) -> Iterator[None]:
    """Within the block every BatchNorm normalises with the statistics of its own input, without
    gradients through them, and reports them; running statistics, momentum counters and other ranks
    are left alone. A BatchNorm that runs several times in one forward reports every input.

    Args:
        norms: those that do, some of :func:`batch_norms`; all by default.
    """
    norms = batch_norms(model) if norms is None else norms
    own = [(norm, norm.training, norm.running_mean, norm.running_var) for norm in norms.values()]
    handles = []
    try:
        for name, norm in norms.items():
            norm.training = False
            handles.append(norm.register_forward_pre_hook(StatsHook(name, on_stats)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for norm, training, mean, var in own:
            norm.training, norm.running_mean, norm.running_var = training, mean, var


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorm layers normalise as they did, but do not touch their running statistics."""
    norms = [
        m
        for m in module.modules()
        if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Within the block the model is in training or evaluation mode; then, whatever happened, every
    module is in its own again. Detectron2's ``inference_context`` gives all modules that of the
    model, and none after an exception."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
