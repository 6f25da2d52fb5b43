"""Single-path training and evaluation of a Hit-Detector's sub-spaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from torch import nn

from detnas_d2.modeling.hit.narrow import NeckWidths
from detnas_d2.modeling.hit.neck import HitPAFPN
from detnas_d2.modeling.searchable_layers import ChoiceLayers
from detnas_d2.search_space import Path
from detnas_d2.search_space.elastic_space import ElasticHitSpace
from detnas_d2.search_space.hit_network import PARTS
from detnas_d2.search_space.hit_space import HitSpace


class HitSupernet:
    """The parts of a model that hold one candidate of which each forward pass runs one.

    It offers what the DetNAS supernet does (``space``, ``active``), so that the same sampler,
    trainer, recalibration and evolution work on it.

    Args:
        parts: of the model.
        model: where the channels of neck and head are searched too, they are narrowed in it.
    """

    space: HitSpace | ElasticHitSpace

    def __init__(self, parts: Sequence[ChoiceLayers], model: nn.Module) -> None:
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
        self._widths: NeckWidths | None = None
        for name, module in model.named_modules():
            if isinstance(module, HitPAFPN) and module.widths is not None:
                # Meta-architectures call it so; what is before that is what the detector is in.
                self._widths, self._prefix = module.widths, name.removesuffix("backbone")
                self._modules = dict(model.named_modules())
                self.space = ElasticHitSpace(self.space, module.widths.channels)
                break

    @contextmanager
    def active(self, path: Path) -> Iterator[None]:
        """Makes ``path`` the active path of all parts for the duration of a ``with`` block."""
        if path.space != self.space:
            raise ValueError(
                f"path of space {path.space.name!r}, supernet of space {self.space.name!r}"
            )
        choices = self.space.split(path)
        with ExitStack() as stack:
            if isinstance(self.space, ElasticHitSpace):
                stack.enter_context(self._narrowed(self.space.channels(path), choices))
            for name, layers in self.parts.items():
                stack.enter_context(layers.active(choices[name]))
            yield

    def _narrowed(
        self, channels: int, choices: Mapping[str, Sequence[int]]
    ) -> AbstractContextManager[None]:
        """The model with fewer channels of neck and head, where these choices run."""
        assert self._widths is not None
        names = {module: name for name, module in self._modules.items()}
        candidates = {
            f"{names[layers]}.blocks.{layer.index}.candidates.{layer.ops[choice]}"
            for part, layers in self.parts.items()
            for layer, choice in zip(layers.layers, choices[part], strict=True)
        }
        return self._widths.at(channels, self._modules, self._prefix, candidates)
