"""Additive costs of the searchable layers of a Hit-Detector; conventions of ``counting``."""

from __future__ import annotations

from collections.abc import Sequence

from detnas_d2.search_space.costs import CostTable
from detnas_d2.search_space.counting import Cost
from detnas_d2.search_space.hit_network import rules_of
from detnas_d2.search_space.operations import operation_cost
from detnas_d2.search_space.shuffle_ops import block_cost, shuffle_op
from detnas_d2.search_space.space import LayerSpec

ROI_SIZE = 7
"""Height and width of a pooled region, that of the paper's detectors."""


def is_region_layer(part: str, layer: LayerSpec) -> bool:
    """Whether a layer sees pooled regions, not feature maps."""
    return part == "head" and layer.reduction == 1


def layer_sizes(
    part: str, layer: LayerSpec, input_size: tuple[int, int], region: int = ROI_SIZE
) -> list[tuple[int, int]]:
    """Height and width of a layer's *inputs*, one per level, for an image of ``input_size``.

    Args:
        region: height and width of a pooled region.
    """
    if is_region_layer(part, layer):
        return [(region, region)]
    finest = layer.reduction // layer.stride
    scales = [finest * 2**level for level in range(layer.levels)]
    return [(-(-input_size[0] // s), -(-input_size[1] // s)) for s in scales]


def layer_costs(
    part: str,
    layer: LayerSpec,
    *,
    input_size: tuple[int, int],
    proposals: int,
    region: int = ROI_SIZE,
) -> tuple[Cost, ...]:
    """Cost of every candidate of one layer.

    A region layer runs on ``proposals`` regions, a layer of a one-stage head on every level in
    both subnets. Candidates are operations of the table or DetNAS's choice blocks.
    """
    sizes = layer_sizes(part, layer, input_size, region)
    runs = proposals if is_region_layer(part, layer) else 1
    copies = 2 if part == "head" and not is_region_layer(part, layer) else 1
    costs = []
    for op in layer.ops:
        if shuffle_op(op) is not None:
            costs.append(block_cost(layer, op, *sizes[0]))
            continue
        found = [
            operation_cost(
                op,
                layer.in_channels,
                layer.out_channels,
                stride=layer.stride,
                height=height,
                width=width,
                rules=rules_of(part),
            )
            for height, width in sizes
        ]
        macs = sum(cost.macs for cost in found)
        costs.append(Cost(found[0].params * copies, macs * runs * copies))
    return tuple(costs)


def part_cost_table(
    part: str,
    layers: Sequence[LayerSpec],
    *,
    input_size: tuple[int, int] = (800, 1216),
    proposals: int = 1000,
    region: int = ROI_SIZE,
) -> CostTable:
    """The cost table of the searchable layers of one part; its base is zero.

    What is not searched (stem, tail, bottom-up convolutions, fully connected layers, RPN) is the
    same for every genotype and not in the table.
    """
    entries = tuple(
        layer_costs(part, layer, input_size=input_size, proposals=proposals, region=region)
        for layer in layers
    )
    return CostTable(Cost(), entries, (input_size[0], input_size[1]))
