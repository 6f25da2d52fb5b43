"""State that an iteration needs beyond weights and optimizer, so that it can be repeated."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

# Running average of the number of foreground anchors, by which RetinaNet and FCOS divide their
# losses: a plain attribute, which no state dict of Detectron2 holds.
NORMALIZER = "loss_normalizer"


def iteration_seed(seed: int, iteration: int, rank: int, path: int = 0) -> int:
    """Seed of the model's random choices (proposal sampling, dropout) in one iteration.

    Args:
        path: position of the path in an update of several; that of the first is that of one.
    """
    further = f"/{path}" if path else ""
    digest = hashlib.sha256(f"iteration/{seed}/{iteration}/{rank}{further}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def loss_normalizers(model: nn.Module) -> dict[str, float]:
    """Module name -> running average that the module divides its losses by."""
    found = {n: getattr(m, NORMALIZER, None) for n, m in unwrapped(model).named_modules()}
    # Detectron2's keypoint head has a word ("visible") under this name.
    return {n: float(v) for n, v in found.items() if v is not None and not isinstance(v, str)}


def set_loss_normalizers(model: nn.Module, values: Mapping[str, float]) -> None:
    """Makes ``values`` what :func:`loss_normalizers` returns.

    A module without a value loses its own (FCOS has none before its first batch).
    """
    modules = dict(unwrapped(model).named_modules())
    for name in loss_normalizers(model).keys() - values.keys():
        delattr(modules[name], NORMALIZER)
    for name, value in values.items():
        setattr(modules[name], NORMALIZER, value)


def share_loss_normalizers(model: nn.Module) -> None:
    """Gives every rank the mean of the ranks' running averages.

    A checkpoint holds rank 0's; a resumed training is the same only if they are all alike.
    """
    values = loss_normalizers(model) if comm.get_world_size() > 1 else {}
    if not values:
        return
    device = next(model.parameters()).device
    mean = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(mean)
    mean /= comm.get_world_size()
    set_loss_normalizers(model, dict(zip(values, mean.tolist(), strict=True)))
