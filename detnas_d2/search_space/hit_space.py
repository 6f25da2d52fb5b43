"""Single paths through the sub-spaces of a Hit-Detector: any space with either strategy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from detnas_d2.search_space.costs import Cost, CostTable
from detnas_d2.search_space.genotype import Genotype
from detnas_d2.search_space.hit_costs import part_cost_table
from detnas_d2.search_space.hit_network import PARTS, HitNetwork
from detnas_d2.search_space.space import LayerSpec, Path, PathSpace


@dataclass(frozen=True)
class HitSpace(PathSpace):
    """The searched parts of a detector one after the other, as one space of paths.

    Args:
        network: the frame.
        sub_spaces: (part, candidates) of each searched part, in the order backbone, neck, head.
    """

    network: HitNetwork
    sub_spaces: tuple[tuple[str, tuple[str, ...]], ...]

    def __post_init__(self) -> None:
        names = [part for part, _ in self.sub_spaces]
        if not names or names != [part for part in PARTS if part in names]:
            raise ValueError(f"parts {names}: expected some of {', '.join(PARTS)}, in this order")

    @property
    def name(self) -> str:
        return f"{self.network.name}:{'+'.join(part for part, _ in self.sub_spaces)}"

    @property
    def stage_depths(self) -> tuple[int, ...]:
        return tuple(d for part, _ in self.sub_spaces for d in self.network.depths(part))

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """All searched layers, numbered through; stages count groups over all parts."""
        specs: list[LayerSpec] = []
        groups = 0
        for part, ops in self.sub_spaces:
            for layer in self.network.layers(part, ops):
                specs.append(replace(layer, index=len(specs), stage=groups + layer.stage))
            groups += len(self.network.depths(part))
        return tuple(specs)

    def split(self, path: Path) -> dict[str, tuple[int, ...]]:
        """Part -> its choices."""
        choices, parts = list(path.choices), {}
        for part, _ in self.sub_spaces:
            count = sum(self.network.depths(part))
            parts[part], choices = tuple(choices[:count]), choices[count:]
        return parts

    def genotype(self, path: Path) -> Genotype:
        """The genotype of a path (of its searched parts)."""
        candidates = dict(self.sub_spaces)
        ops = {
            part: tuple(candidates[part][c] for c in choices)
            for part, choices in self.split(path).items()
        }
        return Genotype(self.network, **ops)

    def cost_table(
        self, input_size: tuple[int, int] = (800, 1216), proposals: int = 1000
    ) -> CostTable:
        """Costs of the searched layers of all parts; what is fixed is not in it."""
        entries: tuple[tuple[Cost, ...], ...] = ()
        for part, ops in self.sub_spaces:
            layers = self.network.layers(part, ops)
            table = part_cost_table(part, layers, input_size=input_size, proposals=proposals)
            entries += table.entries
        return CostTable(Cost(), entries, tuple(input_size))
