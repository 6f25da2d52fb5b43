from detnas_d2.search_space.additive import AdditiveTable
from detnas_d2.search_space.costs import CostTable, build_cost_table
from detnas_d2.search_space.counting import Cost
from detnas_d2.search_space.declared import space_of
from detnas_d2.search_space.latency import LatencyTable, measure_latency
from detnas_d2.search_space.shuffle_ops import block_cost
from detnas_d2.search_space.space import (
    SHUFFLE_OPS,
    SPACES,
    Choices,
    LayerSpec,
    Path,
    PathError,
    SearchSpace,
    get_space,
)

__all__ = [
    "SHUFFLE_OPS",
    "SPACES",
    "AdditiveTable",
    "Choices",
    "Cost",
    "CostTable",
    "LatencyTable",
    "LayerSpec",
    "Path",
    "PathError",
    "SearchSpace",
    "block_cost",
    "build_cost_table",
    "get_space",
    "measure_latency",
    "space_of",
]
