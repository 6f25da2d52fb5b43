"""Precise running statistics for the BatchNorms of any model, ``detnas_d2.recalibrate``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from detnas_d2.evaluation.ranks import Ranks, all_or_none
from detnas_d2.evaluation.recalibration import BatchCollector, BNStatistics, merge_over_ranks
from detnas_d2.layers.batch_norm_mode import batch_norms, use_batch_statistics


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    num_iters: int | None = None,
    *,
    forward: Callable[[Any], object] | None = None,
) -> BNStatistics:
    """Gives BatchNorms the mean and variance of all that they see in some batches.

    In the place of fvcore's ``update_bn_stats``, for models in which BatchNorms run several times
    in a forward pass (shared by the levels of a pyramid), in some of them, or in none:

    - in every batch a BatchNorm normalises with the statistics of its own input, as in training;
    - its running statistics become those of all its inputs together (Wu and Johnson, "Rethinking
      Batch in BatchNorm", 2021), of every call and batch and of all processes, whatever their
      sizes; pooled in float64, the variance unbiased, as that of torch;
    - what ran in no batch, or saw nothing, keeps what it has.

    All other state is left alone: parameters, modes, ``num_batches_tracked``, and running
    statistics where this fails. Layers that change themselves in ``forward`` still do.

    Args:
        model: any module, in the mode in which it takes the batches. If some of its BatchNorms
            (1d, 2d, 3d, synchronised, with running statistics) are in training mode, only those are
            recalibrated, and the others count as frozen; if none is, all of them are.
        batches: what the model takes, one argument each; at least one. Every process brings its
            own (a collective call).
        num_iters: how many of them, in each process; None: all.
        forward: takes a batch in the model's place, as ``lambda batch: model(*batch)``.

    Returns:
        The moments of the BatchNorms that ran, by module name: count, mean, variance, (C,) each.

    Raises:
        ValueError: there is no batch, or a process has fewer than ``num_iters``.
        FloatingPointError: statistics that are not finite, naming the module.
    """
    norms = _to_recalibrate(model)
    if not norms:
        return BNStatistics()
    run, collector, seen = forward or model, BatchCollector(), 0
    with (
        all_or_none(),
        EventStorage(0),  # where detectors leave their losses
        use_batch_statistics(model, collector.add, norms=norms),
    ):
        for batch in islice(batches, num_iters):
            run(batch)
            collector.end_batch()
            seen += 1
    _check_number(Ranks().gather(seen), num_iters)
    statistics = merge_over_ranks(collector.statistics)
    statistics.check_finite()
    for name, moments in statistics.moments.items():
        if moments.count:
            norm = norms[name]
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.copy_(moments.mean)
            norm.running_var.copy_(moments.variance)
    return statistics


def _to_recalibrate(model: nn.Module) -> dict[str, _BatchNorm]:
    norms = batch_norms(model)
    return {name: norm for name, norm in norms.items() if norm.training} or norms


def _check_number(seen: Sequence[int], num_iters: int | None) -> None:
    """Of batches that each process has seen."""
    if num_iters is not None and min(seen) < num_iters:
        raise ValueError(f"batches: expected {num_iters} in each process, got {min(seen)}")
    if not any(seen):
        raise ValueError("batches: expected at least one, got 0")
