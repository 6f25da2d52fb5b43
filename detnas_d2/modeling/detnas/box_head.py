"""The 4conv1fc box head of DetNAS."""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead
from torch import nn

from detnas_d2.modeling.detnas.build import add_conv_biases, norm_factory


@ROI_BOX_HEAD_REGISTRY.register()
class DetNASConvFCHead(FastRCNNConvFCHead):
    """Detectron2's convolution + fully connected head with the norms of this package.

    They take their momentum from ``MODEL.DETNAS`` and synchronise on CPU processes too. With
    ``conv_bias`` the convolutions keep a bias before the norm, as released. Convolutions start
    from N(0, 0.01), as released.
    """

    @configurable
    def __init__(self, *args: object, conv_bias: bool = False, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        if conv_bias:
            add_conv_biases(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.01)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        options = super().from_config(cfg, input_shape)
        options["conv_norm"] = norm_factory(cfg, cfg.MODEL.ROI_BOX_HEAD.NORM)
        options["conv_bias"] = cfg.MODEL.DETNAS.CONV_BIAS_BEFORE_NORM
        return options
