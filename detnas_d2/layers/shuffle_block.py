"""The ShuffleNetV2 choice blocks of DetNAS (arXiv 1903.10979 section 3.2 and the released code).

Shape shorthand: C channels of the stage, C' = C // 2 channels of a branch, k kernel size. The
middle channels of the main branch are C', or a multiple of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detnas_d2.layers.conv import ConvNormAct, KeepsFolded, NormFactory
from detnas_d2.ops.reference import channel_shuffle

SHUFFLE_METHODS = (1, 2)


def shuffle_split(x: Tensor, method: int) -> tuple[Tensor, Tensor]:
    """Channel shuffle and split of (N, C, H, W) into a left and a right (N, C / 2, H, W).

    Method 1 interleaves the halves (0, C/2, 1, C/2+1, ...) and cuts in the middle (the released
    ImageNet and search code); method 2 takes even and odd channels (the released single-path
    detectors). Weights trained with one are useless with the other.
    """
    if method == 2:
        return x[:, 0::2], x[:, 1::2]
    left, right = channel_shuffle(x, 2).chunk(2, dim=1)
    return left, right


class ShuffleBlock(KeepsFolded):
    """One ShuffleNetV2 block with a chosen operation.

    Stride 1: the input is shuffled and split at its entry; the right half goes through the main
    branch, the left is passed on; output cat(left, main). Stride 2: no split; the main branch
    gives out_channels - in_channels, the projection in_channels; output cat(projection, main).

    Args:
        in_channels, out_channels: equal if the stride is 1.
        op: "3x3", "5x5", "7x7" (1x1, depthwise kxk, 1x1) or "xception" (three separable 3x3).
        expansion: middle channels of the main branch over out_channels // 2.
        stride: 1 or 2. Input (N, in_channels, H, W), output (N, out_channels, ceil(H / stride),
            ceil(W / stride)).
        shuffle_method: see :func:`shuffle_split`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        op: str,
        stride: int,
        norm: NormFactory,
        shuffle_method: int,
        expansion: int = 1,
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"stride {stride}: expected 1 or 2")
        if stride == 1 and in_channels != out_channels:
            raise ValueError(f"stride 1 needs equal channels, not {in_channels} -> {out_channels}")
        if shuffle_method not in SHUFFLE_METHODS:
            raise ValueError(f"shuffle_method {shuffle_method}: expected 1 or 2")
        self.op, self.stride, self.shuffle_method = op, stride, shuffle_method
        self.expansion = expansion
        main_in = in_channels if stride == 2 else in_channels // 2
        main_out = out_channels - main_in
        mid = out_channels // 2 * expansion
        if op == "xception":
            kernel = 3
            self.main = _separable_chain((main_in, mid, mid, main_out), stride, norm)
        elif op in ("3x3", "5x5", "7x7"):
            kernel = int(op[0])
            self.main = nn.Sequential(
                ConvNormAct(main_in, mid, norm=norm),
                _depthwise(mid, kernel, stride, norm),
                ConvNormAct(mid, main_out, norm=norm),
            )
        else:
            raise ValueError(f"op {op!r}: expected 3x3, 5x5, 7x7 or xception")
        self.projection = (
            nn.Sequential(
                _depthwise(in_channels, kernel, 2, norm),
                ConvNormAct(in_channels, in_channels, norm=norm),
            )
            if stride == 2
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.projection is not None:
            return torch.cat((self.projection(x), self.main(x)), dim=1)
        left, right = shuffle_split(x, self.shuffle_method)
        return torch.cat((left, self.main(right)), dim=1)


def _depthwise(channels: int, kernel: int, stride: int, norm: NormFactory) -> ConvNormAct:
    return ConvNormAct(
        channels, channels, kernel, norm=norm, stride=stride, groups=channels, relu=False
    )


def _separable_chain(channels: tuple[int, ...], stride: int, norm: NormFactory) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(len(channels) - 1):
        layers.append(_depthwise(channels[i], 3, stride if i == 0 else 1, norm))
        layers.append(ConvNormAct(channels[i], channels[i + 1], norm=norm))
    return nn.Sequential(*layers)
