"""Dense 3x3 convolutions of necks and heads, without gradients."""

from __future__ import annotations

from torch import Tensor

from detnas_d2.ops import reference
from detnas_d2.ops.extension import has_extension
from detnas_d2.ops.reference import BNStats
from detnas_d2.ops.registration import (
    by_reference,
    caller,
    channels_last,
    fake_stats,
    lower,
    register_autocast,
    register_fake,
    takes,
)


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    out_relu: bool = False,
    want_stats: bool = False,
) -> tuple[Tensor, BNStats | None]:
    """3x3 convolution of stride 1 and padding 1, and statistics of its raw output.

    On the CPU by Winograd's F(4x4, 3x3): a quarter of the multiplications where height and width
    are multiples of four. An output's error in float32 stays below 4e-6 times the sum, over the
    input channels, of the largest magnitude among the 6x6 pixels that its tile of 4x4 outputs reads
    times the sum of the magnitudes of the nine taps: a large value costs digits in all outputs of
    the tiles that read it, and what is not finite leaves NaN in them. Other devices run PyTorch's
    convolution.

    Args:
        x: (N, C, H, W); channels_last is read in place, other layouts are converted once.
        weight: (out_channels, C, 3, 3), dtype of x.
        bias: (out_channels); out_relu: ReLU of the output.
        want_stats: also return the output's statistics (on the CPU before rounding to x's dtype).

    Returns:
        y (N, out_channels, H, W) channels_last, and its :class:`BNStats` or None.

    Raises:
        NotImplementedError: not differentiable, but an input requires grad where gradients are
            recorded.
        RuntimeError: an argument has another shape, dtype or device than it should, or statistics
            are wanted with ``out_relu``.
    """
    args = (x, weight, bias, out_relu, want_stats)
    if not takes(x):
        return by_reference("conv3x3", reference.conv3x3, *args)
    y, *stats = _conv3x3(*args)
    return y, BNStats(*stats) if want_stats else None


def _fake(x, weight, bias, out_relu, want_stats):
    n, _, h, w = x.shape
    y = channels_last(x, n, weight.shape[0], h, w)
    return y, *fake_stats(x, want_stats, weight.shape[0])


register_autocast("conv3x3", lambda dtype, x, w, *rest: (lower(x, dtype), lower(w, dtype), *rest))
if has_extension():
    register_fake("conv3x3", _fake)
    _conv3x3 = caller("conv3x3")
