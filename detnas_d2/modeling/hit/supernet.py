"""Single-path training and evaluation of a Hit-Detector's sub-spaces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from detnas_d2.modeling.searchable_layers import ChoiceLayers
from detnas_d2.search_space import Path
from detnas_d2.search_space.hit_network import PARTS
from detnas_d2.search_space.hit_space import HitSpace


class HitSupernet:
    """The parts of a model that hold one candidate of which each forward pass runs one.

    It offers what the DetNAS supernet does (``space``, ``active``), so that the same sampler,
    trainer, recalibration and evolution work on it.
    """

    def __init__(self, parts: Sequence[ChoiceLayers]) -> None:
        by_name = {layers.part: layers for layers in parts}
        if len(by_name) != len(parts):
            raise ValueError("the model has two searchable parts of the same name")
        self.parts = {part: by_name[part] for part in PARTS if part in by_name}
        networks = {layers.network for layers in parts}
        if len(networks) != 1:
            raise ValueError("the searchable parts belong to different networks")
        self.space = HitSpace(
            networks.pop(), tuple((name, part.layers) for name, part in self.parts.items())
        )

    @contextmanager
    def active(self, path: Path) -> Iterator[None]:
        """Makes ``path`` the active path of all parts for the duration of a ``with`` block."""
        if path.space != self.space:
            raise ValueError(
                f"path of space {path.space.name!r}, supernet of space {self.space.name!r}"
            )
        choices = self.space.split(path)
        with ExitStack() as stack:
            for name, layers in self.parts.items():
                stack.enter_context(layers.active(choices[name]))
            yield
