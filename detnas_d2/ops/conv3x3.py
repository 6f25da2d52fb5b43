"""Dense 3x3 convolutions of necks and heads, without gradients."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from detnas_d2.ops import reference
from detnas_d2.ops.extension import has_cpu_kernel, has_extension
from detnas_d2.ops.reference import BNStats
from detnas_d2.ops.registration import (
    absent,
    by_reference,
    caller,
    channels_last,
    fake_stats,
    lower,
    operator,
    register_autocast,
    register_fake,
    takes,
    wide,
)

_PACKS = has_cpu_kernel("pack_conv3x3")


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    out_relu: bool = False,
    want_stats: bool = False,
) -> tuple[Tensor, BNStats | None]:
    """3x3 convolution of stride 1 and padding 1, and statistics of its raw output.

    On the CPU by Winograd's F(4x4, 3x3), in tiles of 4x4 outputs and, where height or width are no
    multiple of four, smaller ones at the end: a quarter of the multiplications, and 27 % for 7x7.
    An output's error in float32 stays below 4e-6 times the sum, over the
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


def takes_packed_weights(x: Tensor) -> bool:
    """Whether :func:`conv3x3_packed` takes this input: on the CPU, where it is compiled."""
    return _PACKS and x.is_cpu


def pack_conv3x3(weight: Tensor) -> Tensor:
    """The weight of :func:`conv3x3` as its kernels for the CPU read it.

    Args:
        weight: (N, C, 3, 3), on the CPU.

    Returns:
        (36, ceil(N / 16), C, 16), four times as large; float64 for float64, else float32. A copy:
        later writes to the weight do not count.

    Raises:
        NotImplementedError, RuntimeError: as :func:`conv3x3`.
    """
    return _pack_conv3x3(weight)


def conv3x3_packed(
    xs: Sequence[Tensor],
    weight: Tensor,
    packed: Tensor,
    bias: Tensor | None = None,
    out_relu: bool = False,
) -> list[Tensor]:
    """:func:`conv3x3` of several maps at once, to the bit: small ones cost hardly anything beside a
    large one, since the weights are read for all of them.

    Args:
        xs: maps of one dtype and number of channels, on the CPU.
        packed: what :func:`pack_conv3x3` made of ``weight``, of which only the shape is read.
        bias, out_relu: see :func:`conv3x3`.

    Returns:
        the outputs (N, out_channels, H, W), channels_last, in the order of ``xs``.

    Raises:
        NotImplementedError, RuntimeError: as :func:`conv3x3`.
    """
    return _conv3x3_packed(list(xs), weight, packed, bias, out_relu)


def _pack_fake(weight):
    n, c = weight.shape[:2]
    return wide(weight, 36, (n + 15) // 16, c, 16)


def _packed_fake(xs, weight, packed, bias, out_relu):
    n = weight.shape[0]
    return [channels_last(x, x.shape[0], n, *x.shape[2:]) for x in xs]


def _fake(x, weight, bias, out_relu, want_stats):
    n, _, h, w = x.shape
    y = channels_last(x, n, weight.shape[0], h, w)
    return y, *fake_stats(x, want_stats, weight.shape[0])


register_autocast("conv3x3", lambda dtype, x, w, *rest: (lower(x, dtype), lower(w, dtype), *rest))
if has_extension():
    register_fake("conv3x3", _fake)
    _conv3x3 = caller("conv3x3")
if _PACKS:
    register_autocast(
        "conv3x3_packed",
        lambda dtype, xs, w, *rest: ([lower(x, dtype) for x in xs], lower(w, dtype), *rest),
    )
    register_fake("conv3x3_packed", _packed_fake)
    register_fake("pack_conv3x3", _pack_fake)
    _conv3x3_packed = caller("conv3x3_packed")
    _pack_conv3x3 = operator("pack_conv3x3")
else:
    _conv3x3_packed, _pack_conv3x3 = absent("conv3x3_packed"), absent("pack_conv3x3")
