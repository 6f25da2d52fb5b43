"""Cost columns of a table: of a stage's whole detector, counted from its config alone."""

from __future__ import annotations

from functools import lru_cache

from detectron2.config import CfgNode

from detnas_d2.analysis.complexity import analyze
from detnas_d2.config.tools import base_config
from detnas_d2.search_space import Cost

_PARAMETERS = {
    "detector_params": "total",
    "backbone_params": "backbone",
    "neck_params": "neck",
    "head_params": "head",
}
DETECTOR_COSTS = (*_PARAMETERS, "detector_flops")
"""Parameters in millions; FLOPs in 1e9, for 1,000 regions. Both as mmdetection counts them."""
INPUT = (800, 1216)
"""Image (height, width) of Hit-Detector's tables: 800x1200, padded to a multiple of 32."""


def detector_cost(cfg: CfgNode, metric: str, input_size: tuple[int, int] = INPUT) -> float:
    """One of DETECTOR_COSTS of the detector that ``cfg`` describes.

    Args:
        input_size: image (height, width); parameters do not depend on it.
    """
    node = cfg.MODEL.clone()
    node.defrost()
    node.WEIGHTS = ""
    costs = _costs(node.dump(), tuple(input_size))
    if metric == "detector_flops":
        return costs["total"].macs / 1e9
    return costs[_PARAMETERS[metric]].params / 1e6


@lru_cache(maxsize=64)
def _costs(model: str, input_size: tuple[int, int]) -> dict[str, Cost]:
    cfg = base_config()
    cfg.MODEL.merge_from_other_cfg(CfgNode.load_cfg(model))
    return analyze(cfg, input_size=input_size, proposals=1000, convention="mmdet")
