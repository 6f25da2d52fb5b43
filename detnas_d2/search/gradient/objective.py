"""Objective terms and decoding of a relaxed detector (Hit-Detector sections 3.2 to 3.4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from detnas_d2.modeling.searchable_layers import RelaxedLayers, relaxed_parts
from detnas_d2.search_space import CostTable
from detnas_d2.search_space.hit_costs import ROI_SIZE, part_cost_table

GIGA = 1e9


def column_norms(probabilities: Tensor) -> Tensor:
    """|| p[:, j] ||_2 of the columns of (layers, operations), without those of removed operations.

    A column is one operation in all layers of a part: the groups of eq. 4.
    """
    squares = probabilities.square().sum(dim=0)
    return squares[squares > 0].sqrt()


def smallest_norm(probabilities: Tensor) -> Tensor:
    """min_j || p[:, j] ||_2: eq. 4 if the min that it prints is one over the columns.

    It pulls at the weakest operation alone, which is the next one that the screening removes.
    """
    return column_norms(probabilities).min()


def column_sparsity(probabilities: Tensor) -> Tensor:
    """sum_j || p[:, j] ||_2^(1/2): column-sparse in the sense of section 3.2.

    The plain sum of norms (group lasso) is no sparsity term on probabilities: each row sums to 1,
    so the sum is sqrt(layers) for every matrix of equal rows, uniform or one-hot. The square root
    makes it concave in a column's mass: it is largest where operations are equal, and smallest
    where all layers have one operation.
    """
    return column_norms(probabilities).sqrt().sum()


SPARSITY_TERMS = {"sparse": column_sparsity, "min": smallest_norm}
"""Values of ``HIT_SEARCH.SCREENING.SPARSITY_TERM``."""


def expected_macs(probabilities: Tensor, macs: Tensor) -> Tensor:
    """Expected multiply-adds of one part (eq. 7): sum_l sum_i p[l, i] * macs[l, i]."""
    return (probabilities * macs).sum()


class ExpectedCost:
    """C(alpha, beta, gamma) of eq. 6: expected multiply-adds of all relaxed layers, in 1e9.

    Layers that are not searched cost the same whatever is chosen and are left out.

    Args:
        parts: relaxed parts by name.
        input_size: (height, width) of the image that costs are stated for.
        proposals: regions per image that the head runs on; region: their height and width.
    """

    def __init__(
        self,
        parts: Mapping[str, RelaxedLayers],
        *,
        input_size: tuple[int, int],
        proposals: int,
        region: int = ROI_SIZE,
    ) -> None:
        self.tables: dict[str, CostTable] = {}
        self._macs: dict[str, Tensor] = {}
        self._parts = dict(parts)
        for name, layers in parts.items():
            table = part_cost_table(
                name, layers.layers, input_size=input_size, proposals=proposals, region=region
            )
            self.tables[name] = table
            rows = zip(layers.layers, table.macs.entries, strict=True)
            costs = [dict(zip(layer.ops, row, strict=True)) for layer, row in rows]
            self._macs[name] = torch.tensor(
                [[row.get(op, 0) / GIGA for op in layers.ops] for row in costs]
            )

    def by_part(self) -> dict[str, Tensor]:
        """Part -> expected 1e9 multiply-adds, differentiable."""
        costs = {}
        for name, layers in self._parts.items():
            p = layers.probabilities()
            self._macs[name] = self._macs[name].to(device=p.device)
            costs[name] = expected_macs(p, self._macs[name].to(p.dtype))
        return costs

    def __call__(self) -> Tensor:
        return torch.stack(list(self.by_part().values())).sum()

    def decoded_gmacs(self) -> float:
        """1e9 multiply-adds of the searchable layers if the search ended now."""
        total = 0.0
        for name, layers in self._parts.items():
            decoded = zip(layers.layers, layers.decode(), strict=True)
            choices = [layer.ops.index(op) for layer, op in decoded]
            total += self.tables[name].macs.total(choices) / GIGA
        return total


def scores(layers: RelaxedLayers) -> dict[str, float]:
    """Operation -> mean probability over the layers that have it, of those not removed."""
    with torch.no_grad():
        means = (layers.probabilities().sum(dim=0) / layers.offered.sum(dim=0)).tolist()
    return {layers.ops[i]: means[i] for i in layers.active}


def decode_parts(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Part -> most probable operation of every layer (section 3.4), of all relaxed parts."""
    return {name: layers.decode() for name, layers in relaxed_parts(model).items()}
