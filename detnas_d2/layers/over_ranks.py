"""BatchNorm statistics of several processes: one collective forward, one backward."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor

from detnas_d2.ops import BNStats

Group = dist.ProcessGroup | None
"""Of the ranks that share something; None: all."""


def several_processes(group: Group = None) -> bool:
    """Whether this process is one of several ranks, of all of them or of a group."""
    return dist.is_initialized() and dist.get_world_size(group) > 1


def on_one_machine() -> bool:
    """Whether all ranks are known to run on one machine, by Detectron2's launcher or torchrun."""
    if not several_processes():
        return True
    try:
        local = comm.get_local_size()
    except AssertionError:  # not Detectron2's
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    return local == dist.get_world_size()


def merge_over_ranks(stats: BNStats, group: Group = None) -> BNStats:
    """Statistics of the values of all ranks of a group, which may hold different (also zero)
    numbers of them.

    Bitwise the same on every rank. Each rank's gradients are of its own values.
    """
    return BNStats(*_Merge.apply(*stats, group))


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, count: Tensor, mean: Tensor, m2: Tensor, group: Group
    ) -> tuple[Tensor, ...]:
        ctx.group = group
        mine = torch.cat([count.view(1), mean, m2]).double()
        ranks = mine.new_empty(dist.get_world_size(group), len(mine))
        dist.all_gather(list(ranks), mine, group=group)
        counts, means, m2s = ranks.split([1, len(mean), len(mean)], dim=1)
        total = counts.sum()
        joint = (counts * means).sum(0) / total.clamp(min=1)
        m2 = (m2s + counts * (means - joint).square()).sum(0).to(mean.dtype)  # Chan et al. 1979
        joint = joint.to(mean.dtype)
        ctx.save_for_backward(count, mean, total, joint)
        ctx.mark_non_differentiable(total)
        return total, joint, m2

    @staticmethod
    def backward(ctx: Any, _: Tensor, grad_mean: Tensor, grad_m2: Tensor) -> tuple[Any, ...]:
        count, mean, total, joint = ctx.saved_tensors
        grad_mean, grad_m2 = _Sum.apply(torch.cat([grad_mean, grad_m2]), ctx.group).chunk(2)
        count, share = (t.to(mean.dtype) for t in (count, count / total.clamp(min=1)))
        return None, share * grad_mean + 2 * count * (mean - joint) * grad_m2, grad_m2, None


class _Sum(torch.autograd.Function):
    """The sum over a group's ranks, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, group: Group) -> Tensor:
        ctx.group = group
        total = mine.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Sum.apply(grad, ctx.group), None
