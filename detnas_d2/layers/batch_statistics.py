"""BatchNorms outside of their modules: from the statistics of a batch to an affine map.

Running statistics follow, or the stats hook gets what the BatchNorm saw.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from detnas_d2 import ops
from detnas_d2.layers.batch_norm_mode import stats_hook
from detnas_d2.ops import BNStats


def norm_affine(norm: _BatchNorm, stats: BNStats) -> tuple[Tensor, Tensor]:
    """The BatchNorm with a batch's statistics as (scale, shift); running statistics follow."""
    if over_ranks(norm):
        stats = reduce_over_ranks(stats)
    consume_stats(norm, stats)
    return ops.bn_fold(stats, norm.weight, norm.bias, norm.eps)


def over_ranks(norm: _BatchNorm) -> bool:
    """Whether its statistics are those of several processes together."""
    if not isinstance(norm, nn.SyncBatchNorm) or stats_hook(norm) is not None:
        return False
    return dist.is_initialized() and dist.get_world_size() > 1


def consume_stats(norm: _BatchNorm, stats: BNStats) -> None:
    """Hands a batch's statistics to the stats hook, or updates the running ones."""
    hook = stats_hook(norm)
    if hook is not None:
        hook.report(stats)
        return
    count = stats.count
    if not count.is_cuda and count == 1:
        raise ValueError("Expected more than 1 value per channel when training")
    if norm.track_running_stats:
        _update_running(norm, stats)


def _update_running(norm: _BatchNorm, stats: BNStats) -> None:
    count = stats.count
    batches, mean, var = norm.num_batches_tracked, norm.running_mean, norm.running_var
    assert batches is not None and mean is not None and var is not None
    with torch.no_grad():
        batches.add_(1)
        momentum = norm.momentum
        if momentum is None:
            momentum = 1.0 / batches.item()
        n = (count - 1).clamp(min=1) if count.is_cuda else max(count.item() - 1, 1)
        mean.lerp_(stats.mean.to(mean.dtype), momentum)
        var.lerp_((stats.m2 / n).to(var.dtype), momentum)


def reduce_over_ranks(stats: BNStats) -> BNStats:
    """Statistics of all ranks' values; ranks may hold different (also zero) numbers of them."""
    n = stats.count.to(stats.mean.dtype)
    count = stats.count.clone()
    dist.all_reduce(count)
    mean = all_reduce(stats.mean * n) / count.to(n.dtype)
    m2 = all_reduce(stats.m2 + n * (stats.mean - mean).square())
    return BNStats(count, mean, m2)
