"""The operators of a DetNAS detector around its backbone."""

from __future__ import annotations

from typing import TypeVar

from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from torch import Tensor, nn

from detnas_d2.layers.dense_conv import Conv3x3, use_conv3x3
from detnas_d2.layers.fused_ops import hooked
from detnas_d2.layers.linear_of_maps import use_maps
from detnas_d2.layers.roi_pooler import LevelsPooler
from detnas_d2.modeling.detnas.backbone import ShuffleNetBackbone

M = TypeVar("M", bound=nn.Module)


def use_operators(model: M) -> M:
    """Has the 3x3 convolutions of neck and heads run as the backbone's ``fused_ops`` says.

    RetinaNet's heads have each convolution run on all levels at once, poolers of regions are
    :class:`LevelsPooler`, and box heads read regions as their convolutions leave them. Models
    without a DetNAS backbone are left alone.
    """
    backbones = [m for m in model.modules() if isinstance(m, ShuffleNetBackbone)]
    inside = {part for backbone in backbones for part in backbone.modules()}
    for backbone in backbones[:1]:
        around = [module for module in model.modules() if module not in inside]
        use_conv3x3(around, backbone.fused_ops, backbone.autotune)
        fused = backbone.fused_ops != "off"
        kinds = _OF_LEVELS if fused else {ours: theirs for theirs, ours in _OF_LEVELS.items()}
        for module in around:
            module.__class__ = kinds.get(type(module), type(module))
            if isinstance(module, FastRCNNConvFCHead):
                use_maps(module, fused)
    return model


class LevelsTogether(RetinaNetHead):
    """RetinaNet's heads, layer after layer of all levels instead of level after level.

    Detectron2's own forward where heads have norms, which tell levels apart, or hooks. Made of one
    by :func:`use_operators`.
    """

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        parts = [*self.cls_subnet, self.cls_score], [*self.bbox_subnet, self.bbox_pred]
        first = parts[0][0]
        plain = all(map(_plain, [self.cls_subnet, self.bbox_subnet, *parts[0], *parts[1]]))
        if not plain or not isinstance(first, Conv3x3) or not first.runs(features):
            return super().forward(features)
        return _through(parts[0], features), _through(parts[1], features)


_OF_LEVELS: dict[type, type] = {RetinaNetHead: LevelsTogether, ROIPooler: LevelsPooler}


def _plain(module: nn.Module) -> bool:
    return type(module) in (Conv3x3, nn.ReLU, nn.Sequential) and not hooked(module)


def _through(layers: list[nn.Module], maps: list[Tensor]) -> list[Tensor]:
    """What the layers make of the maps; a ReLU follows every convolution but the last."""
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, Conv3x3):
            maps = layer.of_maps(maps, type(following) is nn.ReLU)
    return maps
