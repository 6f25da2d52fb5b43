"""Blocks by kernel in shallow and deep stages, as section 4.4 of DetNAS compares networks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from detnas_d2.drawing.looks import look_in
from detnas_d2.search_space.genotype import Genotype
from detnas_d2.search_space.hit_space import GenotypeSpace
from detnas_d2.search_space.space import LayerSpec, Path


@dataclass(frozen=True)
class KernelCounts:
    """Blocks of a stage, or of several.

    Args:
        by_kernel: side of the kernel -> blocks, Xception among those of 3x3.
        xception: how many of them are Xception blocks.
        skipped: layers without a block.
    """

    by_kernel: dict[int, int] = field(default_factory=dict)
    xception: int = 0
    skipped: int = 0

    def __add__(self, other: KernelCounts) -> KernelCounts:
        kernels = sorted({*self.by_kernel, *other.by_kernel})
        return KernelCounts(
            {k: self.by_kernel.get(k, 0) + other.by_kernel.get(k, 0) for k in kernels},
            self.xception + other.xception,
            self.skipped + other.skipped,
        )

    def __str__(self) -> str:
        """E.g. "8 of 3x3 (6 Xception), 3 of 5x5, 1 of 7x7"."""
        texts = []
        for kernel, count in self.by_kernel.items():
            blocks = f"{count} of {kernel}x{kernel}"
            marked = kernel == 3 and self.xception
            texts.append(f"{blocks} ({self.xception} Xception)" if marked else blocks)
        if self.skipped:
            texts.append(f"{self.skipped} skipped")
        return ", ".join(texts) or "none"


def count_kernels(layers: Iterable[LayerSpec], ops: Iterable[str]) -> tuple[KernelCounts, ...]:
    """The counts of every stage of a backbone.

    Args:
        layers: its searchable layers; ops: their operations.
    """
    stages: dict[int, KernelCounts] = {}
    for layer, op in zip(layers, ops, strict=True):
        look = look_in(layer, op)
        one = KernelCounts({} if look.is_skip else {look.kernel: 1}, look.is_xception, look.is_skip)
        stages[layer.stage] = stages.get(layer.stage, KernelCounts()) + one
    return tuple(stages[stage] for stage in sorted(stages))


def backbone_counts(architecture: Path | Genotype) -> tuple[KernelCounts, ...]:
    """The counts of every stage of its backbone; none if it has no searched one."""
    if isinstance(architecture, Path) and isinstance(architecture.space, GenotypeSpace):
        architecture = architecture.space.genotype(architecture)
    if isinstance(architecture, Path):
        return count_kernels(architecture.space.layers, architecture.ops)
    layers = architecture.network.backbone_layers(()) if architecture.backbone else ()
    return count_kernels(layers, architecture.backbone)


def shallow_and_deep(stages: tuple[KernelCounts, ...]) -> tuple[KernelCounts, KernelCounts]:
    """Sums over the first half of the stages and over the rest (of four: 1 and 2, 3 and 4)."""
    half = len(stages) // 2
    return sum(stages[:half], KernelCounts()), sum(stages[half:], KernelCounts())
