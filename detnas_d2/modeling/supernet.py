"""The supernet inside a model of any meta-architecture, of DetNAS or of Hit-Detector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from detnas_d2.modeling.detnas.backbone import Around, Supernet
from detnas_d2.modeling.hit.supernet import HitSupernet
from detnas_d2.modeling.prefix_walk import PrefixWalk
from detnas_d2.modeling.searchable_layers import ChoiceLayers
from detnas_d2.search_space import Path


def find_supernet(model: nn.Module) -> Supernet | HitSupernet | None:
    """The supernet inside ``model``, or None; several are an error.

    That of a Hit-Detector is all its parts with choices together.
    """
    found: list[Supernet | HitSupernet] = []
    found += [module for module in model.modules() if isinstance(module, Supernet)]
    parts = [module for module in model.modules() if isinstance(module, ChoiceLayers)]
    if parts:
        found.append(HitSupernet(parts, model))
    if len(found) > 1:
        raise ValueError(f"{type(model).__name__} contains {len(found)} supernets, expected one")
    return found[0] if found else None


@contextmanager
def activate(model: nn.Module, path: Path) -> Iterator[None]:
    """Makes ``path`` the active path of the supernet inside ``model`` (any meta-architecture).

    Raises:
        ValueError: the model has no supernet, or one of another space.
    """
    supernet = find_supernet(model)
    if supernet is None:
        raise ValueError(f"{type(model).__name__} contains no supernet")
    with supernet.active(path):
        yield


@contextmanager
def walking(model: nn.Module, walk: PrefixWalk) -> Iterator[None]:
    """Within the block the supernet inside ``model`` runs its active path through ``walk``.

    Supernets other than :class:`Supernet` go on computing every path whole.
    """
    supernet = find_supernet(model)
    if not isinstance(supernet, Supernet):
        yield
        return
    supernet.walk = walk
    try:
        yield
    finally:
        supernet.walk = None
        walk.clear()


@contextmanager
def running_through(supernet: Supernet, around: Around) -> Iterator[None]:
    """Within the block ``around`` runs the layers of the supernet's active path."""
    before, supernet.around = supernet.around, around
    try:
        yield
    finally:
        supernet.around = before
