"""The Hit-Detector neck: a path-aggregation pyramid with searchable laterals."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from detnas_d2.modeling.hit.narrow import NeckWidths
from detnas_d2.modeling.searchable_layers import PartLayers


class HitPAFPN(Backbone):
    """Top-down, then bottom-up pyramid (Hit-Detector section 3.1; topology as released).

    With one operation per level in each of two steps:

    1. step-1 operation on every backbone feature;
    2. from the coarsest level down, add the coarser level upsampled twice (nearest);
    3. step-2 operation on every level: P;
    4. N of the finest level is its P; N(i+1) = conv3x3(maxpool2x2(N(i)) + P(i+1)), a plain
       convolution with bias.

    Input: images (N, 3, H, W), H and W multiples of ``size_divisibility``. Output: "p2" ... "p5"
    (or the levels that the features have) and what ``top_block`` adds.

    Args:
        bottom_up: any Detectron2 backbone.
        in_features: names of its features, finest first, each half the size of the one before.
        layers: 2 x len(in_features) searchable layers.
        channels: channels of every output.
        top_block: makes coarser levels from the last N (``LastLevelMaxPool``, ``LastLevelP6P7``).
        widths: fewer channels that a supernet's paths have; None: all have ``channels``.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        layers: PartLayers,
        *,
        channels: int,
        top_block: LastLevelMaxPool | LastLevelP6P7 | None = None,
        widths: NeckWidths | None = None,
    ) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self.widths = widths
        self.in_features = list(in_features)
        if len(layers) != 2 * len(self.in_features):
            raise ValueError(
                f"{len(self.in_features)} levels need {2 * len(self.in_features)} layers, not "
                f"{len(layers)}"
            )
        shapes = bottom_up.output_shape()
        strides = [shapes[name].stride for name in self.in_features]
        if any(b != 2 * a for a, b in zip(strides, strides[1:], strict=False)):
            raise ValueError(f"strides {strides} of {self.in_features}: each must double")
        self.layers = layers
        self.bottom_up_convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in strides[1:]
        )
        self.top_block = top_block
        self._init_weights()
        first = strides[0].bit_length() - 1
        names = [f"p{first + i}" for i in range(len(strides))]
        if top_block is not None:
            for _ in range(top_block.num_levels):
                strides.append(2 * strides[-1])
                names.append(f"p{first + len(names)}")
        self._size_divisibility = strides[len(self.in_features) - 1]
        self._out_features = names
        self._out_feature_strides = dict(zip(names, strides, strict=True))
        self._out_feature_channels = dict.fromkeys(names, channels)

    def _init_weights(self) -> None:
        # As released: Xavier for all convolutions of the neck, also inside its operations.
        for child in (self.layers, self.bottom_up_convs):
            for m in child.modules():
                if isinstance(m, nn.Conv2d):
                    nn.init.xavier_uniform_(m.weight)
                    if m.bias is not None:
                        nn.init.zeros_(m.bias)

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.bottom_up(x)
        count = len(self.in_features)
        levels = [self.layers(i, features[name]) for i, name in enumerate(self.in_features)]
        for i in range(count - 2, -1, -1):
            upsampled = F.interpolate(levels[i + 1], scale_factor=2.0, mode="nearest")
            levels[i] = levels[i] + upsampled
        levels = [self.layers(count + i, level) for i, level in enumerate(levels)]
        outputs = levels[:1]
        for conv, level in zip(self.bottom_up_convs, levels[1:], strict=True):
            outputs.append(conv(F.max_pool2d(outputs[-1], 2, 2) + level))
        if self.top_block is not None:
            # Detectron2's top blocks read one level: the last one here.
            outputs.extend(self.top_block(outputs[-1]))
        return dict(zip(self._out_features, outputs, strict=True))
