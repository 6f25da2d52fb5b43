"""Single paths through the sub-spaces of a Hit-Detector: any space with either strategy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from detnas_d2.search_space.costs import CostTable
from detnas_d2.search_space.counting import Cost
from detnas_d2.search_space.genotype import Genotype
from detnas_d2.search_space.hit_costs import ROI_SIZE, part_cost_table
from detnas_d2.search_space.hit_network import PARTS, HitNetwork
from detnas_d2.search_space.space import LayerSpec, Path, PathSpace


class GenotypeSpace(PathSpace):
    """A space whose paths are genotypes of parts of a Hit-Detector."""

    @abstractmethod
    def split(self, path: Path) -> dict[str, tuple[int, ...]]:
        """Part -> its choices."""

    @abstractmethod
    def genotype(self, path: Path) -> Genotype:
        """The genotype of a path (of its searchable parts)."""


@dataclass(frozen=True)
class HitSpace(GenotypeSpace):
    """The searchable parts of a detector one after the other, as one space of paths.

    Args:
        network: the frame.
        parts: (part, its layers) of each searchable part, in the order backbone, neck, head. The
            layers of a part have the same candidates.
    """

    network: HitNetwork
    parts: tuple[tuple[str, tuple[LayerSpec, ...]], ...]

    def __post_init__(self) -> None:
        names = [part for part, _ in self.parts]
        if not names or names != [part for part in PARTS if part in names]:
            raise ValueError(f"parts {names}: expected some of {', '.join(PARTS)}, in this order")

    @classmethod
    def of_network(
        cls, network: HitNetwork, sub_spaces: Iterable[tuple[str, tuple[str, ...]]]
    ) -> HitSpace:
        """Parts on the network's own backbone, from (part, candidates)."""
        return cls(network, tuple((part, network.layers(part, ops)) for part, ops in sub_spaces))

    @property
    def name(self) -> str:  # type: ignore[override]  # read-only, as a frozen field is
        return f"{self.network.name}:{'+'.join(part for part, _ in self.parts)}"

    @property
    def levels(self) -> int:
        """Pyramid levels of the neck."""
        return len(dict(self.parts).get("neck", range(8))) // 2

    @property
    def stage_depths(self) -> tuple[int, ...]:  # type: ignore[override]  # likewise
        return tuple(d for part, _ in self.parts for d in self.network.depths(part, self.levels))

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """All searchable layers, numbered through; stages count groups over all parts."""
        specs: list[LayerSpec] = []
        groups = 0
        for part, layers in self.parts:
            for layer in layers:
                specs.append(replace(layer, index=len(specs), stage=groups + layer.stage))
            groups += len(self.network.depths(part))
        return tuple(specs)

    def split(self, path: Path) -> dict[str, tuple[int, ...]]:
        return self.by_part(path.choices)

    def by_part(self, choices: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Part -> its choices, of the choices of all layers."""
        split: dict[str, tuple[int, ...]] = {}
        for part, layers in self.parts:
            split[part], choices = tuple(choices[: len(layers)]), choices[len(layers) :]
        return split

    def genotype(self, path: Path) -> Genotype:
        candidates = {part: layers[0].ops for part, layers in self.parts}
        ops: dict[str, Any] = {
            part: tuple(candidates[part][c] for c in choices)
            for part, choices in self.split(path).items()
        }
        return Genotype(self.network, **ops, levels=self.levels)

    def cost_table(
        self,
        input_size: tuple[int, int] = (800, 1216),
        proposals: int = 1000,
        region: int = ROI_SIZE,
    ) -> CostTable:
        """Costs of the searchable layers of all parts; what is fixed is not in it.

        Args:
            proposals: regions that layers of a two-stage head run on; region: their side.
        """
        entries: tuple[tuple[Cost, ...], ...] = ()
        for part, layers in self.parts:
            table = part_cost_table(
                part, layers, input_size=input_size, proposals=proposals, region=region
            )
            entries += table.entries
        return CostTable(Cost(), entries, (input_size[0], input_size[1]))
