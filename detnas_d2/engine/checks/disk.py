"""Disk space that the stages of pipelines need, told before the first one starts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from detectron2.config import CfgNode
from torch import Tensor, nn

from detnas_d2.engine.checkpoint import KEPT
from detnas_d2.engine.supernet_check.plan import equal_updates, is_checked
from detnas_d2.engine.supernet_check.standalone import standalone_config
from detnas_d2.modeling import find_supernet
from detnas_d2.utils.errors import InputError

_GIB = 2**30
_FRONT = 10  # as many whole supernets hold the members of most fronts


class DiskError(InputError):
    """Less disk is free than will be needed."""


@dataclass(frozen=True)
class Need:
    """Bytes that a stage writes.

    Attributes:
        lasting: checkpoints that stay.
        passing: one more, which is written before an older one is removed.
        cache: images, as long as a search runs; without the room it decodes them each time.
    """

    lasting: int = 0
    passing: int = 0
    cache: int = 0


def need_of(kind: str, cfg: CfgNode, model: nn.Module) -> Need:
    """Disk space that a stage needs.

    Args:
        kind: of the stage.
        model: its model; may be on the meta device.
    """
    if kind == "evaluate":
        return Need()
    if kind == "search":  # what it finds are parts of the supernet
        found = 1 + (_FRONT if len(cfg.SEARCH.OBJECTIVES) > 1 else 0)
        size = found * _bytes_of(model.state_dict().values())
        return Need(size, cache=int(cfg.SEARCH.IMAGE_CACHE_GIB * _GIB))
    size, kept = checkpoint_bytes(model), 1 + kept_checkpoints(cfg)
    supernet = find_supernet(model)
    if supernet is not None and is_checked(cfg):  # and one path of it, trained alone
        updates = equal_updates(cfg, supernet.space, 1)
        kept += 1 + kept_checkpoints(standalone_config(cfg, updates)) if updates else 0
    return Need(size * kept, passing=size)


def checkpoint_bytes(model: nn.Module) -> int:
    """Of a training's checkpoint: the model, and the momentum of what learns."""
    learning = [p for p in model.parameters() if p.requires_grad]
    return _bytes_of([*model.state_dict().values(), *learning])


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def kept_checkpoints(cfg: CfgNode) -> int:
    """Number of periodic checkpoints that stay besides the final one."""
    every = cfg.SOLVER.CHECKPOINT_KEEP_EVERY
    numbers = range(1, cfg.SOLVER.MAX_ITER // cfg.SOLVER.CHECKPOINT_PERIOD + 1)
    return len({*numbers[-KEPT:], *(n for n in numbers if every and n % every == 0)})


def check_disk(needs: Mapping[str, Need], output_dir: str) -> str:
    """A line about what is needed in all and what is free.

    Args:
        needs: folder of a stage that is not done -> its need. Checkpoints that are there count.

    Raises:
        DiskError: less is free than the checkpoints need.
    """
    folder = _existing(output_dir)
    lasting = sum(need.lasting - _checkpoints_in(place) for place, need in needs.items())
    needed = max(0, lasting) + max((need.passing for need in needs.values()), default=0)
    cache = max((need.cache for need in needs.values()), default=0)
    amount = f"{needed / _GIB:.1f} GiB" if needed >= _GIB / 10 else f"{-(-needed // 2**20):.0f} MiB"
    text = f"about {amount} for checkpoints"
    text += f" and up to {cache / _GIB:.1f} GiB for images while a search runs" if cache else ""
    free = free_bytes(folder)
    if free is None:
        return f"Disk: {text}; {folder} does not tell how much is free"
    if needed > free:
        raise DiskError(
            f"OUTPUT_DIR {output_dir}: {free / _GIB:.1f} GiB are free, the stages need {text}; "
            "free some, use another OUTPUT_DIR, or keep fewer checkpoints for good "
            "(SOLVER.CHECKPOINT_KEEP_EVERY)"
        )
    return f"Disk: {text}; {free / _GIB:.1f} GiB are free"


def free_bytes(folder: str) -> int | None:
    """Bytes that this user may still write; None where the file system does not tell."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize if status.f_blocks else None


def _existing(folder: str) -> str:
    folder = os.path.abspath(folder)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def _checkpoints_in(folder: str) -> int:
    if not os.path.isdir(folder):
        return 0
    with os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.name.endswith(".pth"))
