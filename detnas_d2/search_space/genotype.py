"""A searched Hit-Detector as a value: the operation of every layer of every part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from detnas_d2.search_space.hit_network import PARTS, HitNetwork
from detnas_d2.search_space.operations import OperationError, get_operation
from detnas_d2.utils.errors import InputError


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
    head: ...``; :meth:`from_text` reads it.

    Args:
        network: the frame: depths and channels.
        backbone, neck, head: operation names, layer by layer.
        levels: pyramid levels of the neck.
    """

    network: HitNetwork = field(repr=False)
    backbone: tuple[str, ...] = ()
    neck: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    levels: int = field(default=4, repr=False)

    def __post_init__(self) -> None:
        for part in PARTS:
            names = parse_part(self.network, part, getattr(self, part), levels=self.levels)
            object.__setattr__(self, part, names)

    @classmethod
    def from_text(cls, network: HitNetwork, text: str, *, levels: int = 4) -> Genotype:
        """Inverse of ``str``.

        Raises:
            GenotypeError: an unknown or repeated part, or operations that do not fit.
        """
        parts: dict[str, tuple[str, ...]] = {}
        for piece in filter(None, (piece.strip() for piece in text.split(";"))):
            part, colon, ops = piece.partition(":")
            if not colon or part.strip() not in PARTS or part.strip() in parts:
                raise GenotypeError(
                    f"{piece!r}: expected 'part: operations' with each of {', '.join(PARTS)} once"
                )
            parts[part.strip()] = parse_part(network, part.strip(), ops.strip(), levels=levels)
        return cls(network, **parts, levels=levels)

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
        return "; ".join(f"{part}: {self.part_text(part)}" for part in self.parts)
