"""The backbone under a neck, by its name in the registry."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone


def bottom_up(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """``MODEL.HIT.BOTTOM_UP``, with the features that the neck reads."""
    cfg = cfg.clone()
    cfg.defrost()
    features = list(cfg.MODEL.FPN.IN_FEATURES)
    for node in (cfg.MODEL.HIT, cfg.MODEL.DETNAS, cfg.MODEL.RESNETS):
        node.OUT_FEATURES = features
    return BACKBONE_REGISTRY.get(cfg.MODEL.HIT.BOTTOM_UP)(cfg, input_shape)
