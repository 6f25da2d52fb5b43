"""A searched Hit-Detector as a value: the operation of every layer of every part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from detnas_d2.search_space.hit_network import PARTS, HitNetwork
from detnas_d2.search_space.operations import OperationError, get_operation
from detnas_d2.utils.errors import InputError

NECK_CHANNELS = "neck_channels"
"""What a genotype's text calls channels of neck and head that are not the network's own."""


class GenotypeError(InputError):
    """A genotype that its network cannot have."""


def parse_part(
    network: HitNetwork, part: str, source: str | Iterable[str], *, levels: int = 4
) -> tuple[str, ...]:
    """The operations that ``source`` gives to the layers of a part.

    Args:
        source: operation names, as a list or as text; in text they are separated by blanks or
            commas and ``/`` may stand between the groups of a part (stages, pyramid steps). Empty
            for a part that the genotype leaves alone.
        levels: pyramid levels of the neck.

    Raises:
        GenotypeError: naming part, layer and what was expected.
    """
    depths = network.depths(part, levels)
    if isinstance(source, str):
        groups = [group.split() for group in source.replace(",", " ").split("/")]
        names = tuple(name for group in groups for name in group)
        if len(groups) > 1 and tuple(len(group) for group in groups) != depths:
            found = tuple(len(group) for group in groups)
            raise GenotypeError(
                f"{part} of network {network.name!r} has groups of {depths} layers, {source!r} "
                f"has {found}"
            )
    else:
        names = tuple(source)
    if names and len(names) != sum(depths):
        raise GenotypeError(
            f"{part} of network {network.name!r} has {sum(depths)} layers, {source!r} has "
            f"{len(names)}"
        )
    for layer, name in enumerate(names):
        try:
            get_operation(name)
        except OperationError as error:
            raise GenotypeError(f"{part}, layer {layer}: {error}") from None
    return names


@dataclass(frozen=True)
class Genotype:
    """The operations of a searched detector; a part without operations is not a searched one.

    ``str(genotype)`` is its canonical text, e.g. ``backbone: ir_k3_e3_d1 skip / ...; neck: ...;
    head: ...``, with ``neck_channels: 128; `` before it where they are given;
    :meth:`from_text` reads it.

    Args:
        network: the frame: depths and channels.
        backbone, neck, head: operation names, layer by layer.
        levels: pyramid levels of the neck.
        neck_channels: of neck and head in the place of the network's, which then has them; 0: the
            network's own.
    """

    network: HitNetwork = field(repr=False)
    backbone: tuple[str, ...] = ()
    neck: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    levels: int = field(default=4, repr=False)
    neck_channels: int = 0

    def __post_init__(self) -> None:
        if self.neck_channels:
            own = replace(self.network, neck_channels=self.neck_channels)
            object.__setattr__(self, "network", own)
        for part in PARTS:
            names = parse_part(self.network, part, getattr(self, part), levels=self.levels)
            object.__setattr__(self, part, names)

    @classmethod
    def from_text(cls, network: HitNetwork, text: str, *, levels: int = 4) -> Genotype:
        """Inverse of ``str``.

        Raises:
            GenotypeError: an unknown or repeated part, operations that do not fit, or no number of
                channels.
        """
        parts: dict[str, tuple[str, ...]] = {}
        channels = 0
        for piece in filter(None, (piece.strip() for piece in text.split(";"))):
            part, colon, ops = (found.strip() for found in piece.partition(":"))
            if part == NECK_CHANNELS and not channels:
                if not ops.isdecimal() or int(ops) < 1:
                    raise GenotypeError(
                        f"{piece!r}: expected a number of channels, as in '{NECK_CHANNELS}: 128'"
                    )
                channels = int(ops)
                continue
            if not colon or part not in PARTS or part in parts:
                raise GenotypeError(
                    f"{piece!r}: expected 'part: operations' with each of {', '.join(PARTS)} once, "
                    f"and '{NECK_CHANNELS}: number' once at most"
                )
            parts[part] = parse_part(network, part, ops, levels=levels)
        return cls(network, **parts, levels=levels, neck_channels=channels)

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """Part -> operations, of the searchable parts."""
        return {part: getattr(self, part) for part in PARTS if getattr(self, part)}

    def part_text(self, part: str) -> str:
        """The operations of a part as text, with ``/`` between its groups."""
        names, texts = iter(getattr(self, part)), []
        if getattr(self, part):
            for depth in self.network.depths(part, self.levels):
                texts.append(" ".join(next(names) for _ in range(depth)))
        return " / ".join(texts)

    def __str__(self) -> str:
        channels = [f"{NECK_CHANNELS}: {self.neck_channels}"] if self.neck_channels else []
        return "; ".join([*channels, *(f"{p}: {self.part_text(p)}" for p in self.parts)])
