"""The NAS-FPN neck (arXiv 1904.07392) over any backbone: a baseline of Hit-Detector's Table 1.

Seven stacked cells of seven merges. In that table it stands in the place of FPN in a two-stage
detector, so that its five levels have strides 4 to 64 (p2 to p6) where the published one has 8 to
128; the coarsest starts from the last backbone feature, max-pooled. Laterals are 1x1 convolutions
with bias and no norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from detnas_d2.layers import NormFactory, get_norm
from detnas_d2.modeling.bottom_up import bottom_up

STACKS = 7


def resize(x: Tensor, size: torch.Size) -> Tensor:
    """Nearest upsampling or max pooling of (N, C, H, W) by a power of two to ``size``."""
    if x.shape[-2:] == size:
        return x
    if x.shape[-2] < size[0]:
        return F.interpolate(x, size=size, mode="nearest")
    stride = x.shape[-2] // size[0]
    return F.max_pool2d(x, stride, stride)


def add(a: Tensor, b: Tensor, size: torch.Size) -> Tensor:
    """Sum of two maps at ``size``."""
    return resize(a, size) + resize(b, size)


class Attend(nn.Module):
    """``b`` plus ``a`` scaled per channel by the sigmoid of the mean of ``b``, at ``size``."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, a: Tensor, b: Tensor, size: torch.Size) -> Tensor:
        a, b = resize(a, size), resize(b, size)
        return b + self.pool(b).sigmoid() * a


class OutConv(nn.Sequential):
    """ReLU, 3x3 convolution with bias, norm: what follows every merge."""

    def __init__(self, channels: int, norm: NormFactory) -> None:
        super().__init__(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), norm(channels))


class NASFPNStack(nn.Module):
    """The seven merges over five levels (N, C, H / 2^i, W / 2^i), finest first."""

    def __init__(self, channels: int, norm: NormFactory) -> None:
        super().__init__()
        self.out = nn.ModuleList(OutConv(channels, norm) for _ in range(7))
        self.attend = Attend()

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        # Names as published (p3 finest to p7 coarsest).
        p3, p4, p5, p6, p7 = levels
        s3, s4, s5, s6, s7 = (level.shape[-2:] for level in levels)
        a4 = self.out[0](self.attend(p6, p4, s4))
        b4 = self.out[1](add(a4, p4, s4))
        n3 = self.out[2](add(b4, p3, s3))
        n4 = self.out[3](add(n3, b4, s4))
        n5 = self.out[4](add(p5, self.attend(n4, n3, s5), s5))
        n7 = self.out[5](add(p7, self.attend(n5, b4, s7), s7))
        n6 = self.out[6](self.attend(n7, n5, s6))
        return [n3, n4, n5, n6, n7]


class NASFPN(Backbone):
    """NAS-FPN over the features ``in_features`` of a backbone and one coarser level.

    Input: images (N, 3, H, W), H and W multiples of ``size_divisibility``. Output: "p2" ... "p6"
    for features of strides 4 to 32.
    """

    def __init__(
        self,
        body: Backbone,
        in_features: Sequence[str],
        *,
        channels: int,
        norm: NormFactory,
    ) -> None:
        super().__init__()
        if len(in_features) != 4:
            raise ValueError(f"NAS-FPN needs four features, not {list(in_features)}")
        self.bottom_up = body
        self.in_features = list(in_features)
        shapes = [body.output_shape()[name] for name in in_features]
        widths = [shape.channels for shape in (*shapes, shapes[-1])]
        self.coarsest = nn.MaxPool2d(2, 2)
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.stacks = nn.ModuleList(NASFPNStack(channels, norm) for _ in range(STACKS))
        for part in (self.laterals, self.stacks):
            for m in part.modules():
                if isinstance(m, nn.Conv2d):
                    nn.init.kaiming_uniform_(m.weight, a=1)
                    assert m.bias is not None
                    nn.init.zeros_(m.bias)
        strides = [shape.stride for shape in shapes]
        strides.append(2 * strides[-1])
        self._size_divisibility = strides[-1]
        self._out_features = [f"p{stride.bit_length() - 1}" for stride in strides]
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))
        self._out_feature_channels = dict.fromkeys(self._out_features, channels)

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.bottom_up(x)
        levels = [features[name] for name in self.in_features]
        levels.append(self.coarsest(levels[-1]))
        levels = [conv(level) for conv, level in zip(self.laterals, levels, strict=True)]
        for stack in self.stacks:
            levels = stack(levels)
        return dict(zip(self._out_features, levels, strict=True))


@BACKBONE_REGISTRY.register()
def build_nasfpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> NASFPN:
    """NAS-FPN over ``MODEL.HIT.BOTTOM_UP``."""
    return NASFPN(
        bottom_up(cfg, input_shape),
        list(cfg.MODEL.FPN.IN_FEATURES),
        channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=partial(get_norm, cfg.MODEL.HIT.NORM),
    )
