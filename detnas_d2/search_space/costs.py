"""Additive costs of paths.

Conventions (those of the DetNAS paper and its released counter): a multiply-add counts 1;
convolutions and linear layers are counted, biases, normalisation, activations and pooling are not.
Parameters are all learned tensors, BatchNorm's weight and bias included, running statistics not.
The "body" of a backbone is its stem and choice blocks, without last convolution and classifier;
that is what the paper's limits of 300M and 1.3G apply to, at an input of 3x224x224.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

from detnas_d2.search_space.additive import AdditiveTable
from detnas_d2.search_space.space import LayerSpec, SearchSpace


@dataclass(frozen=True)
class Cost:
    """Parameters and multiply-adds of a network or of one of its parts."""

    params: int = 0
    macs: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs)


def conv_cost(
    height: int, width: int, cin: int, cout: int, kernel: int = 1, groups: int = 1
) -> Cost:
    """A bias-free convolution with an affine normalisation after it, at its output size."""
    weights = cout * (cin // groups) * kernel * kernel
    return Cost(weights + 2 * cout, height * width * weights)


def block_cost(layer: LayerSpec, op: str, height: int, width: int) -> Cost:
    """Cost of one ShuffleNetV2 choice block.

    Args:
        layer: the layer it stands in.
        op: "3x3", "5x5", "7x7" or "xception".
        height, width: size of the block's *input*.
    """
    cin, cout, stride = layer.in_channels, layer.out_channels, layer.stride
    out_h, out_w = -(-height // stride), -(-width // stride)
    mid = cout // 2
    main_in = cin if stride == 2 else cin // 2
    main_out = cout - cin if stride == 2 else cout - cin // 2
    kernel = 3 if op == "xception" else int(op[0])
    if op == "xception":
        parts = []
        for channels, out in ((main_in, mid), (mid, mid), (mid, main_out)):
            parts.append(conv_cost(out_h, out_w, channels, channels, 3, channels))
            parts.append(conv_cost(out_h, out_w, channels, out))
    else:
        parts = [
            conv_cost(height, width, main_in, mid),
            conv_cost(out_h, out_w, mid, mid, kernel, mid),
            conv_cost(out_h, out_w, mid, main_out),
        ]
    if stride == 2:
        parts.append(conv_cost(out_h, out_w, cin, cin, kernel, cin))
        parts.append(conv_cost(out_h, out_w, cin, cin))
    return sum(parts, Cost())


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
