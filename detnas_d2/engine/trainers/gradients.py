"""Data-parallel training of one path of a supernet."""

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
