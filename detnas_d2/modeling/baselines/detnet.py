"""DetNet-59 (Li et al., ECCV 2018, arXiv 1804.06215), a hand-made backbone for detection.

Stages 1 to 4 are ResNet-50's. Stages 5 and 6 stay at stride 16 and have three bottlenecks each,
256 channels wide with a 3x3 convolution of dilation 2, and 1,024 channels of output; the first of
a stage (type B) has a 1x1 convolution in its shortcut although no shape changes. With a linear
layer of 1,000 classes that takes 4.8 G multiply-adds at 224x224, as the paper says.

The pyramid over stages 2 to 6 has the strides 4, 8, 16, 16, 16; between equal ones the top-down
path adds without upsampling. Detectron2's FPN and ROIPooler expect every stride to be twice the one
before, so both have their counterpart here.

============================  ==========================================
registry name                 what it is
============================  ==========================================
build_detnet_backbone         the backbone; features res2 to res6
build_detnet_fpn_backbone     with its pyramid P2-P6
DetNetROIHeads                StandardROIHeads for such a pyramid
============================  ==========================================

It reads ``MODEL.RESNETS`` (NORM, STRIDE_IN_1X1, OUT_FEATURES), ``MODEL.BACKBONE.FREEZE_AT`` and
``MODEL.FPN``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY, Backbone, StandardROIHeads
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
from fvcore.nn import weight_init
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from detnas_d2.modeling.baselines.resnet_names import is_torchvision_resnet, resnet_names
from detnas_d2.modeling.detnas.build import norm_factory

_BLOCKS = (3, 4, 6, 3, 3)
_WIDTHS = (64, 128, 256, 256, 256)
_OUT_CHANNELS = (256, 512, 1024, 1024, 1024)
_STEM_CHANNELS = 64
_DILATION = 2


class ProjectedBottleneck(BottleneckBlock):
    """Bottleneck with a projection in the shortcut (type B, figure 2 of the paper)."""

    shortcut: Conv2d | None

    def __init__(self, in_channels: int, out_channels: int, *, norm: str, **kwargs: Any) -> None:
        super().__init__(in_channels, out_channels, norm=norm, **kwargs)
        if self.shortcut is None:
            self.shortcut = Conv2d(
                in_channels, out_channels, 1, bias=False, norm=get_norm(norm, out_channels)
            )
            weight_init.c2_msra_fill(self.shortcut)


class DetNet(ResNet):
    """DetNet-59: images (N, 3, H, W) to features "res2" to "res6", strides 4, 8, 16, 16, 16.

    Args:
        norm: as Detectron2's ``get_norm``.
        stride_in_1x1: where stages 3 and 4 stride: the first 1x1 convolution, or the 3x3.
        out_features: names of the features that are returned.
        freeze_at: stages frozen at the beginning, the stem counted; see Detectron2's ResNet.
    """

    def __init__(
        self, *, norm: str, stride_in_1x1: bool, out_features: list[str], freeze_at: int = 0
    ) -> None:
        stages, channels = [], _STEM_CHANNELS
        for number, (blocks, width) in enumerate(zip(_BLOCKS, _WIDTHS, strict=True)):
            dilated = number >= 3
            options: dict[str, Any] = {
                "bottleneck_channels": width,
                "norm": norm,
                "stride_in_1x1": stride_in_1x1,
                "dilation": _DILATION if dilated else 1,
            }
            first = ProjectedBottleneck if dilated else BottleneckBlock
            out = _OUT_CHANNELS[number]
            stride = 2 if number in (1, 2) else 1
            stage = [first(channels, out, stride=stride, **options)]
            stage += [BottleneckBlock(out, out, **options) for _ in range(blocks - 1)]
            stages.append(stage)
            channels = out
        # Given out_features, Detectron2's ResNet would drop what follows res5.
        super().__init__(BasicStem(3, _STEM_CHANNELS, norm), stages, freeze_at=freeze_at)
        unknown = set(out_features) - {"stem", *self.stage_names}
        if unknown:
            raise ValueError(
                f"DetNet-59 has no feature {sorted(unknown)}: expected some of stem, "
                f"{', '.join(self.stage_names)}"
            )
        self._out_features = list(out_features)


class DetNetFPN(Backbone):
    """Pyramid of one level per feature, P2 the first, each with the stride of its feature.

    Args:
        bottom_up: backbone.
        in_features: its features, from fine to coarse.
        out_channels: channels of every level.
        norm: of the convolutions; "" for none.
    """

    def __init__(
        self, bottom_up: Backbone, *, in_features: list[str], out_channels: int, norm: Any
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        self.bottom_up = bottom_up
        self.in_features = list(in_features)
        self.pyramid = FeaturePyramidNetwork(
            [shapes[name].channels for name in in_features], out_channels, norm_layer=norm or None
        )
        self._out_features = [f"p{level}" for level in range(2, 2 + len(in_features))]
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        strides = [shapes[name].stride for name in in_features]
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides.values())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Levels (N, out_channels, H / stride, W / stride) of images (N, 3, H, W)."""
        features = self.bottom_up(x)
        chosen = OrderedDict((name, features[name]) for name in self.in_features)
        return dict(zip(self._out_features, self.pyramid(chosen).values(), strict=True))


@ROI_HEADS_REGISTRY.register()
class DetNetROIHeads(StandardROIHeads):
    """StandardROIHeads for levels of which several have one stride.

    Boxes are given to levels by their size as in FPN, as if strides doubled; the features of a
    level are then taken at its true stride.
    """

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        names = cfg.MODEL.ROI_HEADS.IN_FEATURES
        first = input_shape[names[0]].stride
        nominal = {
            name: ShapeSpec(channels=input_shape[name].channels, stride=first * 2**level)
            for level, name in enumerate(names)
        }
        head = super()._init_box_head(cfg, nominal)
        for pooler, name in zip(head["box_pooler"].level_poolers, names, strict=True):
            pooler.spatial_scale = 1 / input_shape[name].stride
        return head


@BACKBONE_REGISTRY.register()
def build_detnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DetNet:
    """DetNet-59 with the features ``MODEL.RESNETS.OUT_FEATURES``."""
    return _backbone(cfg, cfg.MODEL.RESNETS.OUT_FEATURES)


@BACKBONE_REGISTRY.register()
def build_detnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DetNetFPN:
    """DetNet-59 with a pyramid over ``MODEL.FPN.IN_FEATURES``."""
    return DetNetFPN(
        _backbone(cfg, cfg.MODEL.FPN.IN_FEATURES),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=norm_factory(cfg, cfg.MODEL.FPN.NORM),
    )


def _backbone(cfg: CfgNode, out_features: list[str]) -> DetNet:
    return DetNet(
        norm=cfg.MODEL.RESNETS.NORM,
        stride_in_1x1=cfg.MODEL.RESNETS.STRIDE_IN_1X1,
        out_features=out_features,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


def adapt_resnet_state_dict(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """``state`` of a classifier, or of torchvision, with the keys of a model's ResNet or DetNet;
    others as is.
    """
    source, target = "backbone.", "backbone.bottom_up."
    backbone = getattr(model, "backbone", None)
    body = getattr(backbone, "bottom_up", None)
    if isinstance(body or backbone, ResNet) and is_torchvision_resnet(state):
        prefix = target if body is not None else source
        return {prefix + key: value for key, value in resnet_names(state).items()}
    if not isinstance(body, ResNet) or f"{source}stem.conv1.weight" not in state:
        return dict(state)
    return {
        target + key[len(source) :] if key.startswith(source) else key: value
        for key, value in state.items()
    }
