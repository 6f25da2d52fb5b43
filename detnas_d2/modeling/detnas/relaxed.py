"""DetNAS's choice blocks, relaxed: its space searched by gradient as Hit-Detector's are."""

from __future__ import annotations

from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from detnas_d2.layers import NormFactory
from detnas_d2.layers.norm import get_norm
from detnas_d2.modeling.detnas.backbone import ShuffleNetBackbone
from detnas_d2.modeling.searchable_layers import RelaxedLayers
from detnas_d2.search_space import LayerSpec, SearchSpace, space_of
from detnas_d2.search_space.shuffle_ops import build_block

RELAXED_DETNAS = "build_detnas_relaxed_backbone"


class RelaxedShuffleNet(ShuffleNetBackbone):
    """The DetNAS backbone with weighted sums of all candidates in every layer (eq. 5).

    Args:
        recompute: see :class:`detnas_d2.modeling.mixed_block.MixedBlock`; others as
            :class:`ShuffleNetBackbone`.
    """

    fused_ops = "off"

    def __init__(
        self,
        space: SearchSpace,
        *,
        norm: NormFactory,
        shuffle_method: int,
        recompute: bool = True,
        **options: Any,
    ) -> None:
        def build(layer: LayerSpec, op: str) -> nn.Module:
            return build_block(layer, op, norm, shuffle_method)

        super().__init__(
            space,
            lambda layers: RelaxedLayers("backbone", layers, build, recompute=recompute),
            norm=norm,
            **options,
        )

    def run_layer(self, index: int, x: Tensor) -> Tensor:
        return self.blocks(index, x)


@BACKBONE_REGISTRY.register()
def build_detnas_relaxed_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> RelaxedShuffleNet:
    """The relaxed space ``MODEL.DETNAS.SPACE``; under a neck by ``MODEL.HIT.BOTTOM_UP``."""
    node = cfg.MODEL.DETNAS
    return RelaxedShuffleNet(
        space_of(cfg),
        norm=partial(get_norm, node.NORM, momentum=node.NORM_MOMENTUM),
        shuffle_method=node.SHUFFLE_METHOD,
        out_features=list(node.OUT_FEATURES),
        last_conv=node.LAST_CONV,
        init=node.INIT,
        recompute=cfg.MODEL.HIT.RECOMPUTE,
    )
