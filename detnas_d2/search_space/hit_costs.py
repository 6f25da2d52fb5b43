"""Additive costs of the searchable layers of a Hit-Detector; conventions of ``costs``."""

from __future__ import annotations

from collections.abc import Sequence

from detnas_d2.search_space.costs import Cost, CostTable, block_cost
from detnas_d2.search_space.hit_network import rules_of
from detnas_d2.search_space.operations import operation_cost
from detnas_d2.search_space.space import SHUFFLE_OPS, LayerSpec

ROI_SIZE = 7
"""Height and width of a pooled region."""


def layer_size(part: str, layer: LayerSpec, input_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a layer's *input* for an image of ``input_size``."""
    if part == "head":
        return ROI_SIZE, ROI_SIZE
    reduction = layer.reduction // layer.stride
    return -(-input_size[0] // reduction), -(-input_size[1] // reduction)


def layer_costs(
    part: str, layer: LayerSpec, *, input_size: tuple[int, int], proposals: int
) -> tuple[Cost, ...]:
    """Cost of every candidate of one layer; a head layer runs on ``proposals`` regions.

    Candidates are operations of the table or DetNAS's choice blocks.
    """
    height, width = layer_size(part, layer, input_size)
    times = proposals if part == "head" else 1
    costs = []
    for op in layer.ops:
        if op in SHUFFLE_OPS:
            costs.append(block_cost(layer, op, height, width))
            continue
        cost = operation_cost(
            op,
            layer.in_channels,
            layer.out_channels,
            stride=layer.stride,
            height=height,
            width=width,
            rules=rules_of(part),
        )
        costs.append(Cost(cost.params, cost.macs * times))
    return tuple(costs)


def part_cost_table(
    part: str,
    layers: Sequence[LayerSpec],
    *,
    input_size: tuple[int, int] = (800, 1216),
    proposals: int = 1000,
) -> CostTable:
    """The cost table of the searchable layers of one part; its base is zero.

    What is not searched (stem, tail, bottom-up convolutions, fully connected layers, RPN) is the
    same for every genotype and not in the table.
    """
    entries = tuple(
        layer_costs(part, layer, input_size=input_size, proposals=proposals) for layer in layers
    )
    return CostTable(Cost(), entries, tuple(input_size))
