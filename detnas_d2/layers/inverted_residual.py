"""Inverted residual blocks (MobileNetV2; Hit-Detector section 3.2 and the released code)."""

from __future__ import annotations

from torch import Tensor, nn

from detnas_d2.layers.conv import ConvNormAct, NormFactory
from detnas_d2.ops.reference import channel_shuffle


class InvertedResidual(nn.Module):
    """1x1 norm ReLU, depthwise norm ReLU, 1x1 norm; input added where the shapes allow it.

    No activation follows the addition. With ``expansion`` 1 the first 1x1 convolution stays. With
    ``groups`` both 1x1 convolutions are grouped and the channels shuffled after the first.
    Input (N, in_channels, H, W), output (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Args:
        kernel: side of the depthwise kernel.
        expansion: hidden channels over input channels.

    Raises:
        ValueError: channels that ``groups`` does not divide.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        expansion: int,
        norm: NormFactory,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups {groups} must divide the channels {in_channels} and {out_channels}"
            )
        mid = in_channels * expansion
        self.groups = groups
        self.expand = ConvNormAct(in_channels, mid, norm=norm, groups=groups)
        self.depthwise = ConvNormAct(
            mid, mid, kernel, norm=norm, stride=stride, dilation=dilation, groups=mid
        )
        self.project = ConvNormAct(mid, out_channels, norm=norm, groups=groups, relu=False)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = channel_shuffle(self.expand(x), self.groups)
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y
