"""The operators of a DetNAS detector around its backbone."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from detnas_d2.layers.dense_conv import use_conv3x3
from detnas_d2.modeling.detnas.backbone import ShuffleNetBackbone

M = TypeVar("M", bound=nn.Module)


def use_operators(model: M) -> M:
    """Has the 3x3 convolutions of neck and heads run as the backbone's ``fused_ops`` says.

    Models without a DetNAS backbone are left alone.
    """
    backbones = [m for m in model.modules() if isinstance(m, ShuffleNetBackbone)]
    inside = {part for backbone in backbones for part in backbone.modules()}
    for backbone in backbones[:1]:
        around = [module for module in model.modules() if module not in inside]
        use_conv3x3(around, backbone.fused_ops, backbone.autotune)
    return model
