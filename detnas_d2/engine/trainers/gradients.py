"""Gradients of a supernet: of several paths, and of several ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Gives every rank the values of rank 0, in place. All ranks pass the same tensors."""
    if comm.get_world_size() == 1:
        return
    for tensor in tensors:
        dist.broadcast(tensor.data, src=0)


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Averages gradients over the ranks, in place, in one flat bucket.

    A parameter that has no gradient on any rank keeps none (an off-path operation does not move);
    one that has a gradient on some ranks counts as zero on the others. ``parameters`` must be
    the same list on all ranks.
    """
    world_size = comm.get_world_size()
    if world_size == 1 or not parameters:
        return
    device = parameters[0].device
    present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
    present = present.to(device)
    dist.all_reduce(present, op=dist.ReduceOp.MAX)
    active = [p for p, flag in zip(parameters, present.tolist(), strict=True) if flag]
    gradients = []
    for p in active:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        gradients.append(p.grad)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size
    chunks = flat.split([gradient.numel() for gradient in gradients])
    for gradient, chunk in zip(gradients, chunks, strict=True):
        gradient.copy_(chunk.view_as(gradient))


class PathGradients:
    """Mean over the paths of an update of each parameter's gradients.

    The mean is over the paths that used the parameter (gave it a gradient, on any rank). An
    operation that one path took gets what a step of that path alone would give it, and what all
    paths share gets their average. FairNAS (arXiv 1907.01845, algorithm 1) sums instead, by which
    stem, neck and head learn at as many times the rate as there are paths, and the rate of a
    single-path recipe no longer fits them.

    Args:
        parameters: those that learn, in the same order on all ranks.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._sums: dict[int, Tensor] = {}
        self._used: list[list[bool]] = []

    @torch.no_grad()
    def take(self) -> None:
        """Takes the gradients of a path from the parameters, and leaves None."""
        self._used.append([p.grad is not None for p in self._parameters])
        for number, p in enumerate(self._parameters):
            if p.grad is not None:
                if number in self._sums:
                    self._sums[number] += p.grad
                else:
                    self._sums[number] = p.grad
                p.grad = None

    @torch.no_grad()
    def give_means(self) -> None:
        """Gives every parameter the mean of what was taken, of this rank's part of the batch."""
        used = torch.tensor(self._used, dtype=torch.uint8, device=self._parameters[0].device)
        if comm.get_world_size() > 1:
            dist.all_reduce(used, op=dist.ReduceOp.MAX)
        counts = used.sum(0).tolist()
        for number, total in self._sums.items():
            self._parameters[number].grad = total.div_(counts[number])
        self._sums = {}
