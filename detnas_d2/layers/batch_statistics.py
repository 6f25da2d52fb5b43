"""BatchNorms outside of their modules: from the statistics of a batch to an affine map.

Running statistics follow, or the stats hook gets what the BatchNorm saw.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detnas_d2 import ops
from detnas_d2.layers.batch_norm_mode import stats_hook
from detnas_d2.layers.over_ranks import merge_over_ranks, several_processes
from detnas_d2.ops import BNStats


class _Seen(NamedTuple):
    mean: Tensor
    m2: Tensor
    divisor: float  # of m2, for the variance


class BatchNorms:
    """The BatchNorms of a forward pass.

    Their running statistics follow all at once, when it is over (:meth:`update`): a few operators
    for all of them instead of six for each.

    Args:
        batches: of the pass, each normalised by itself; running statistics follow one after the
            other.
    """

    def __init__(self, batches: int = 1) -> None:
        self.batches = batches
        self._seen: dict[_BatchNorm, _Seen] = {}

    def affine(self, norm: _BatchNorm, stats: BNStats, count: int) -> tuple[Tensor, Tensor]:
        """The BatchNorm with a batch's statistics as (scale, shift), see :func:`ops.bn_fold`.

        Args:
            count: that of ``stats``, known without a look at the device.
        """
        if over_ranks(norm):
            assert isinstance(norm, nn.SyncBatchNorm)
            stats = merge_over_ranks(stats, norm.process_group)
            self.consume(norm, stats, stats.count)
        else:
            self.consume(norm, stats, count)
        return ops.bn_fold(stats, norm.weight, norm.bias, norm.eps)

    def consume(self, norm: _BatchNorm, stats: BNStats, count: int | Tensor) -> None:
        """Hands each batch's statistics to the stats hook, or keeps them for :meth:`update`.

        Args:
            count: of values of a batch.

        Raises:
            ValueError: a count of 1, which has no variance; a count on a GPU is not looked at.
        """
        hook = stats_hook(norm)
        if hook is not None:
            for one in of_each_batch(stats):
                hook.report(one)
            return
        if isinstance(count, Tensor) and not count.is_cuda:
            count = int(count.item())
        if isinstance(count, int) and count == 1:
            raise ValueError("Expected more than 1 value per channel when training")
        if norm.track_running_stats:
            for one in of_each_batch(stats):
                self.keep(norm, one, count)

    def keep(self, norm: _BatchNorm, stats: BNStats, count: int | Tensor) -> None:
        """Keeps a batch's statistics for :meth:`update`."""
        if norm in self._seen:  # one after the other
            self.update()
        if isinstance(count, Tensor):
            with torch.no_grad():
                self._seen[norm] = _Seen(stats.mean, stats.m2 / (count - 1).clamp(min=1), 1.0)
        else:
            self._seen[norm] = _Seen(stats.mean, stats.m2, max(count - 1.0, 1.0))

    @torch.no_grad()
    def update(self) -> None:
        """Moves the running statistics of all BatchNorms towards those of the batch."""
        seen, self._seen = self._seen, {}
        if not seen:
            return
        rows = ((norm, *stats) for norm, stats in seen.items())
        norms, means, m2s, divisors = map(list, zip(*rows, strict=True))
        batches = [_buffer(norm, "num_batches_tracked") for norm in norms]
        torch._foreach_add_(batches, 1)
        variances = torch._foreach_div(m2s, divisors)
        moves: defaultdict[float, tuple[list[Tensor], list[Tensor]]]
        moves = defaultdict(lambda: ([], []))
        for norm, count, mean, var in zip(norms, batches, means, variances, strict=True):
            momentum = 1.0 / count.item() if norm.momentum is None else norm.momentum
            running, new = moves[momentum]
            for name, target in (("running_mean", mean), ("running_var", var)):
                buffer = _buffer(norm, name)
                running.append(buffer)
                new.append(target if target.dtype == buffer.dtype else target.to(buffer.dtype))
        for momentum, (running, new) in moves.items():
            torch._foreach_lerp_(running, new, momentum)


def of_each_batch(stats: BNStats) -> list[BNStats]:
    """The statistics (C) of each batch, from those of one, (C), or of several, (batches, C)."""
    if stats.mean.dim() == 1:
        return [stats]
    rows = zip(stats.mean.unbind(), stats.m2.unbind(), strict=True)
    return [BNStats(stats.count, mean, m2) for mean, m2 in rows]


def _buffer(norm: _BatchNorm, name: str) -> Tensor:
    found = norm._buffers[name]  # nn.Module's own lookup of attributes is slow
    assert found is not None
    return found


def over_ranks(norm: _BatchNorm) -> bool:
    """Whether its statistics are those of several processes together."""
    if not isinstance(norm, nn.SyncBatchNorm) or stats_hook(norm) is not None:
        return False
    return several_processes(norm.process_group)
