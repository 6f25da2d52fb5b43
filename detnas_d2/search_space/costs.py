"""Additive costs of paths; conventions of ``counting``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

from detnas_d2.search_space.additive import AdditiveTable
from detnas_d2.search_space.counting import Cost, conv_cost
from detnas_d2.search_space.shuffle_ops import block_cost
from detnas_d2.search_space.space import SearchSpace


@dataclass(frozen=True)
class CostTable:
    """Costs of every (layer, op) of a space at one input size.

    Args:
        base: cost of what every path shares (the stem).
        entries: ``entries[layer][op]``.
        input_size: (height, width) of the image.

    Attributes:
        macs, params: the table of one quantity.
    """

    base: Cost
    entries: tuple[tuple[Cost, ...], ...]
    input_size: tuple[int, int]

    @cached_property
    def macs(self) -> AdditiveTable[int]:
        return self._of(attrgetter("macs"))

    @cached_property
    def params(self) -> AdditiveTable[int]:
        return self._of(attrgetter("params"))

    def cost(self, choices: Iterable[int]) -> Cost:
        """Cost of the path that chooses ``choices[i]`` in layer i."""
        return sum((row[c] for row, c in zip(self.entries, choices, strict=True)), self.base)

    def _of(self, quantity: Callable[[Cost], int]) -> AdditiveTable[int]:
        rows = tuple(tuple(map(quantity, row)) for row in self.entries)
        return AdditiveTable(quantity(self.base), rows)


def build_cost_table(space: SearchSpace, input_size: tuple[int, int] = (224, 224)) -> CostTable:
    """The cost table of a backbone body (stem and choice blocks) for an image of ``input_size``."""
    height, width = (-(-n // 2) for n in input_size)
    stem = conv_cost(height, width, 3, space.stem_channels, 3)
    # The stem's convolution has a bias, as released.
    base = Cost(stem.params + space.stem_channels, stem.macs)
    entries = []
    for layer in space.layers:
        entries.append(tuple(block_cost(layer, op, height, width) for op in layer.ops))
        height, width = -(-height // layer.stride), -(-width // layer.stride)
    return CostTable(base, tuple(entries), (input_size[0], input_size[1]))
