"""Normalisation by name, with a SyncBN that also runs on CPU processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

NORMS = ("BN", "SyncBN", "FrozenBN", "GN")


class SyncBatchNorm(nn.SyncBatchNorm):
    """BatchNorm over the batches of all processes.

    On GPUs it is torch's. On CPUs, where torch has none, statistics are reduced in two passes,
    weighted by each rank's count, so that ranks may hold different (also zero) numbers of samples.
    In one process it is plain BatchNorm.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return nn.BatchNorm2d.forward(self, input)
        if input.is_cuda:
            return super().forward(input)
        return self._forward_cpu(input)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got shape {tuple(input.shape)}")

    def _forward_cpu(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = torch.tensor([x.numel() / x.size(1)], dtype=torch.float64)
        dist.all_reduce(count)
        n = count.item()
        if n == 0:
            return nn.BatchNorm2d.forward(self, x)
        mean = all_reduce(x.float().sum(dims)) / n
        var = all_reduce((x.float() - mean.view(shape)).square().sum(dims)) / n
        if self.track_running_stats:
            self._update_running(mean.detach(), var.detach() * (n / max(n - 1, 1)))
        scale = torch.rsqrt(var + self.eps)
        y = (x.float() - mean.view(shape)) * scale.view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, var: Tensor) -> None:
        batches, running_mean, running_var = (
            self.num_batches_tracked,
            self.running_mean,
            self.running_var,
        )
        assert batches is not None and running_mean is not None and running_var is not None
        batches.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / batches.item()
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_(var.to(running_var.dtype), momentum)


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
