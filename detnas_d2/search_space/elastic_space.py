"""Paths through a Hit-Detector that choose the channels of its neck and head too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from detnas_d2.search_space.genotype import Genotype
from detnas_d2.search_space.hit_space import GenotypeSpace, HitSpace
from detnas_d2.search_space.operations import get_operation
from detnas_d2.search_space.space import SKIP, LayerSpec, Path, PathError
from detnas_d2.utils.errors import InputError


@dataclass(frozen=True)
class ElasticHitSpace(GenotypeSpace):
    """A :class:`HitSpace` at several numbers of channels of neck and head.

    That choice stands among the layers as one of its own, with candidates "c64", "c128", ... and in
    texts between two ``/``. It comes behind the layers of the backbone, which do not depend on it,
    and before all others.

    Args:
        widest: the space at the last of ``neck_channels``.
        neck_channels: two or more, rising.

    Raises:
        InputError: an operation's groups do not divide a number; or a layer of the neck may be
            skipped that has other channels at its input and output at some of the numbers only,
            where it is a convolution. At the others it has no weights.
    """

    widest: HitSpace
    neck_channels: tuple[int, ...]
    counted: ClassVar[str] = "the whole detector"

    def __post_init__(self) -> None:
        channels = self.neck_channels
        if len(channels) < 2 or list(channels) != sorted(set(channels)):
            raise ValueError(f"neck_channels {channels}: expected two or more, rising")
        if channels[-1] != self.widest.network.neck_channels:
            raise ValueError(
                f"neck_channels {channels}: the widest space has "
                f"{self.widest.network.neck_channels}"
            )
        for part, layers in self.widest.parts:
            if part != "backbone":
                _check_groups(part, layers, channels)
        for layer in dict(self.widest.parts).get("neck", ()):
            if layer.stage == 0 and layer.in_channels in channels and SKIP in layer.ops:
                raise InputError(
                    f"MODEL.HIT.NECK_CHANNELS {list(channels)}: {layer.in_channels} are the "
                    f"channels of the feature that layer {layer.index} of the neck begins with; "
                    f"where it may be skipped ({SKIP!r}), it would have weights at the others "
                    "only. Expected other numbers, or no 'skip' in MODEL.HIT.OPS.NECK"
                )

    @property
    def name(self) -> str:  # type: ignore[override]  # read-only, as a frozen field is
        return f"{self.widest.name}, {' '.join(self.candidates)}"

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of the numbers of channels."""
        return tuple(f"c{channels}" for channels in self.neck_channels)

    @property
    def gene(self) -> int:
        """Place of the choice of channels in a path."""
        return len(dict(self.widest.parts).get("backbone", ()))

    @property
    def stage_depths(self) -> tuple[int, ...]:  # type: ignore[override]  # likewise
        depths, groups = self.widest.stage_depths, self._groups_before
        return (*depths[:groups], 1, *depths[groups:])

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        layers, width = self.widest.layers, self.neck_channels[-1]
        own = LayerSpec(self.gene, self._groups_before, width, width, 1, 1, self.candidates)
        behind = (replace(x, index=x.index + 1, stage=x.stage + 1) for x in layers[self.gene :])
        return (*layers[: self.gene], own, *behind)

    @property
    def _groups_before(self) -> int:
        parts = dict(self.widest.parts)
        return len(self.widest.network.stage_depths) if "backbone" in parts else 0

    def uniform_path(self, op: str) -> Path:
        """The path that chooses ``op`` in every layer, at the most channels."""
        ops = [op] * self.num_layers
        return self.path([*ops[: self.gene], self.candidates[-1], *ops[self.gene + 1 :]])

    def channels(self, path: Path) -> int:
        """Channels of neck and head of a path."""
        return self.neck_channels[path.choices[self.gene]]

    def split(self, path: Path) -> dict[str, tuple[int, ...]]:
        return self.widest.by_part(self._others(path))

    def genotype(self, path: Path) -> Genotype:
        found = self.widest.genotype(Path(self.widest, self._others(path)))
        return replace(found, neck_channels=self.channels(path))

    def at(self, channels: int) -> HitSpace:
        """The space of the paths with these channels, without that choice."""
        if channels not in self.neck_channels:
            raise PathError(f"{channels} channels: expected one of {list(self.neck_channels)}")
        network = replace(self.widest.network, neck_channels=channels)
        parts = tuple((p, _narrowed(p, layers, channels)) for p, layers in self.widest.parts)
        return HitSpace(network, parts)

    def _others(self, path: Path) -> tuple[int, ...]:
        return path.choices[: self.gene] + path.choices[self.gene + 1 :]


def _check_groups(part: str, layers: Sequence[LayerSpec], channels: Sequence[int]) -> None:
    for op in dict.fromkeys(op for layer in layers for op in layer.ops):
        groups = get_operation(op).groups
        uneven = [number for number in channels if number % groups]
        if uneven:
            raise InputError(
                f"MODEL.HIT.NECK_CHANNELS {list(channels)}: {op!r} of MODEL.HIT.OPS.{part.upper()} "
                f"has {groups} groups, which do not divide {uneven[0]}; expected multiples of "
                f"{groups}"
            )


def _narrowed(part: str, layers: Sequence[LayerSpec], channels: int) -> tuple[LayerSpec, ...]:
    """The layers of a part where neck and head have other channels."""
    if part == "backbone":
        return tuple(layers)
    return tuple(
        replace(layer, out_channels=channels)
        if part == "neck" and layer.stage == 0  # it takes a feature of the backbone
        else replace(layer, in_channels=channels, out_channels=channels)
        for layer in layers
    )
