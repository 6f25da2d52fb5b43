"""Separable convolution of Hit-Detector's released code ("sep", and "sd" in its neck)."""

from __future__ import annotations

from torch import Tensor, nn

from detnas_d2.layers.conv import ConvNormAct, NormFactory


class SeparableConv(nn.Module):
    """Depthwise norm ReLU, 1x1 norm; input added if asked for and the shapes allow it.

    Input (N, in_channels, H, W), output (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Args:
        residual: add the input if stride is 1 and the channels are equal (the released neck
            does, backbone and head do not).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        norm: NormFactory,
        residual: bool,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.depthwise = ConvNormAct(
            in_channels,
            in_channels,
            kernel,
            norm=norm,
            stride=stride,
            dilation=dilation,
            groups=in_channels,
        )
        self.project = ConvNormAct(in_channels, out_channels, norm=norm, relu=False)
        self.residual = residual and stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(x))
        return x + y if self.residual else y
