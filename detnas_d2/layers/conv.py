"""Convolution, normalisation, activation: what every block is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

NormFactory = Callable[[int], nn.Module]
K = TypeVar("K", bound="KeepsFolded")


class KeepsFolded(nn.Module):
    """A module whose folded weights are kept with it (see ``folded_norm.folded``).

    They are dropped by everything that modules know of and that may change what they are made of.
    """

    def __getstate__(self) -> dict[str, Any]:
        """Without them: copies and files would be larger by as much as all weights."""
        return {name: value for name, value in self.__dict__.items() if name != "_folded"}

    def drop_folded(self) -> None:
        self.__dict__.pop("_folded", None)

    def train(self: K, mode: bool = True) -> K:
        self.drop_folded()
        return super().train(mode)

    def _apply(self: K, *args: Any, **options: Any) -> K:
        self.drop_folded()
        return super()._apply(*args, **options)

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self.drop_folded()
        super()._load_from_state_dict(*args, **options)


class ConvNormAct(KeepsFolded):
    """Convolution (padded to keep the size at stride 1), norm, and optionally ReLU.

    Input (N, in_channels, H, W), output (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        *,
        norm: NormFactory,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=(kernel - 1) // 2 * dilation,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        self.norm = norm(out_channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.relu_(x) if self.relu else x
