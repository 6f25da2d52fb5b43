"""Normalisation by name, with a SyncBN that also runs on CPU processes."""

from __future__ import annotations

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from detnas_d2.layers.batch_norm_mode import input_stats
from detnas_d2.layers.batch_statistics import BatchNorms
from detnas_d2.layers.over_ranks import merge_over_ranks, several_processes

NORMS = ("BN", "SyncBN", "FrozenBN", "GN")


class SyncBatchNorm(nn.SyncBatchNorm):
    """BatchNorm over the batches of all processes, or of those of its ``process_group``.

    On GPUs it is torch's. On CPUs, where torch has none, statistics are merged by each rank's
    count, so that ranks may hold different (also zero) numbers of samples.
    In one process it is plain BatchNorm.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not several_processes(self.process_group):
            return nn.BatchNorm2d.forward(self, input)
        if input.is_cuda:
            return super().forward(input)
        return self._forward_cpu(input)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got shape {tuple(input.shape)}")

    def _forward_cpu(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        stats = merge_over_ranks(input_stats(x), self.process_group)
        n = int(stats.count.item())
        if n == 0:
            return nn.BatchNorm2d.forward(self, x)
        if self.track_running_stats:
            norms = BatchNorms()
            norms.keep(self, stats, n)
            norms.update()
        shape = [1, -1] + [1] * (x.dim() - 2)
        scale = torch.rsqrt(stats.m2 / n + self.eps)
        y = (x.to(scale.dtype) - stats.mean.view(shape)) * scale.view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)


def get_norm(norm: str, channels: int, *, momentum: float = 0.1) -> nn.Module:
    """A 2-D normalisation layer by its config name.

    Args:
        norm: "BN", "SyncBN", "FrozenBN" or "GN" (at most 32 groups, each of at least 4
            channels).
        channels: number of channels.
        momentum: weight of the new batch in the running statistics (BN and SyncBN).

    Raises:
        ValueError: an unknown name.
    """
    if norm == "BN":
        return nn.BatchNorm2d(channels, momentum=momentum)
    if norm == "SyncBN":
        return SyncBatchNorm(channels, momentum=momentum)
    if norm == "FrozenBN":
        return FrozenBatchNorm2d(channels)
    if norm == "GN":
        return nn.GroupNorm(_num_groups(channels), channels)
    raise ValueError(f"norm {norm!r}: expected one of {', '.join(NORMS)}")


def _num_groups(channels: int) -> int:
    """The largest group count up to 32 that divides the channels and leaves 4 in each, or 1."""
    return next(
        (g for g in range(32, 0, -1) if channels % g == 0 and channels // g >= 4),
        1,
    )
