"""Definitions of all operators in plain PyTorch: slow, obvious, differentiable.

The compiled operators are tested against these, and they are used where the library is missing.
Shapes: x (N, C, H, W); scale, shift, mean, m2 (C); count a scalar. Statistics and affine maps are
float32, or float64 for float64 inputs; maps keep the dtype of x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from detnas_d2.utils.compat import in_function_transform


class BNStats(NamedTuple):
    """Number of values per channel, their mean (C) and sum of squared deviations from it (C)."""

    count: Tensor  # type: ignore[assignment]  # in place of tuple.count
    mean: Tensor
    m2: Tensor


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype of statistics and affine maps of ``x``."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def pending(x: Tensor, scale: Tensor | None, shift: Tensor | None, relu: bool) -> Tensor:
    """relu?(scale * x + shift), in the wide dtype: what an operator sees when it reads x."""
    x = x.to(wide_dtype(x))
    if scale is not None:
        assert shift is not None
        x = x * scale.to(x.dtype).view(1, -1, 1, 1) + shift.to(x.dtype).view(1, -1, 1, 1)
    return F.relu(x) if relu else x


def channels_last(t: Tensor) -> Tensor:
    """``t`` as the operators leave their outputs; inside of torch.func in any layout."""
    if in_function_transform():
        return t
    return t.contiguous(memory_format=torch.channels_last)


T = TypeVar("T")


def by_batch(
    batches: int,
    maps: Sequence[Tensor | None],
    vectors: Sequence[Tensor | None],
    of: Callable[..., T],
) -> T:
    """The results of ``of(*maps, *vectors)`` for every batch, joined as the operators leave them.

    Args:
        maps: (N, C, H, W), the batches of N / batches images one after the other.
        vectors: (batches, C).
    """
    sizes = [t.shape[0] for t in maps if t is not None]
    if batches < 1 or sizes[0] % batches:
        raise RuntimeError(f"batches: expected a divisor of {sizes[0]} images, got {batches}")
    rows = [
        [None] * batches if t is None else t.tensor_split(batches) if t.dim() == 4 else t.unbind()
        for t in (*maps, *vectors)
    ]
    return _joined([of(*batch) for batch in zip(*rows, strict=True)])


def _joined(parts: list[Any]) -> Any:
    """Maps as one, vectors as rows; the batches' counts are the same."""
    first = parts[0]
    if first is None or isinstance(first, Tensor) and first.dim() == 0:
        return first
    if isinstance(first, Tensor):
        return channels_last(torch.cat(parts)) if first.dim() == 4 else torch.stack(parts)
    joined = [_joined(list(column)) for column in zip(*parts, strict=True)]
    return BNStats(*joined) if isinstance(first, BNStats) else type(first)(joined)


def bn_stats(
    x: Tensor | Sequence[Tensor],
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
) -> BNStats:
    if not isinstance(x, Tensor):  # maps of different sizes, as one of a single pixel row
        x = torch.cat([t.transpose(0, 1).reshape(1, t.shape[1], 1, -1) for t in x], dim=3)
    x = pending(x, scale, shift, relu)
    count = x.new_tensor(x.shape[0] * x.shape[2] * x.shape[3], dtype=torch.float64)
    if x.numel() == 0:
        return BNStats(count, x.sum((0, 2, 3)), x.sum((0, 2, 3)))
    wide = x.double()
    mean = wide.mean((0, 2, 3))
    m2 = (wide - mean.view(1, -1, 1, 1)).square().sum((0, 2, 3))
    return BNStats(count, mean.to(x.dtype), m2.to(x.dtype))


def bn_stats_merge(a: BNStats, b: BNStats) -> BNStats:
    """Statistics of two sets of values together (Chan et al. 1979), in float64.

    Args:
        a, b: of maps of one C, on one device.

    Returns:
        count, mean and m2 (C) of both, in the dtype of ``a``'s; zeros if there are no values.

    Raises:
        RuntimeError: of vectors that PyTorch does not add.
    """
    count = a.count + b.count
    safe = count.clamp(min=1)
    delta = b.mean.double() - a.mean.double()
    mean = (a.count * a.mean.double() + b.count * b.mean.double()) / safe
    m2 = a.m2.double() + b.m2.double() + delta.square() * (a.count * b.count / safe)
    return BNStats(count, mean.to(a.mean.dtype), m2.to(a.m2.dtype))


def bn_fold(
    stats: BNStats, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    variance = stats.m2.double() / stats.count
    scale = torch.rsqrt(variance + eps)
    if gamma is not None:
        scale = scale * gamma
    shift = -stats.mean.double() * scale
    if beta is not None:
        shift = shift + beta
    return scale.to(stats.mean.dtype), shift.to(stats.mean.dtype)


def bn_stats_fold(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    batches: int = 1,
) -> tuple[BNStats, Tensor, Tensor]:
    if batches != 1:
        return by_batch(
            batches,
            [x],
            [scale, shift],
            lambda x, a, b: bn_stats_fold(x, a, b, relu, gamma, beta, eps),
        )
    stats = bn_stats(x, scale, shift, relu)
    return stats, *bn_fold(stats, gamma, beta, eps)


def _finish_conv(
    y: Tensor, x: Tensor, out_relu: bool, want_stats: bool
) -> tuple[Tensor, BNStats | None]:
    if out_relu and want_stats:
        raise RuntimeError("want_stats: statistics are of the raw output, not with out_relu")
    stats = bn_stats(y) if want_stats else None
    y = F.relu(y) if out_relu else y
    return channels_last(y.to(x.dtype)), stats


def pointwise_conv(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    bias: Tensor | None = None,
    out_relu: bool = False,
    want_stats: bool = False,
    groups: int = 1,
) -> tuple[Tensor, BNStats | None]:
    z = pending(x, scale, shift, relu)
    b = None if bias is None else bias.to(z.dtype)
    return _finish_conv(F.conv2d(z, weight.to(z.dtype), b, groups=groups), x, out_relu, want_stats)


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    bias: Tensor | None = None,
    out_relu: bool = False,
    want_stats: bool = False,
    stride: int = 1,
    dilation: int = 1,
) -> tuple[Tensor, BNStats | None]:
    z = pending(x, scale, shift, relu)  # padded afterwards: a padded zero stays zero
    b = None if bias is None else bias.to(z.dtype)
    pad = (weight.shape[-1] - 1) // 2 * dilation
    y = F.conv2d(z, weight.to(z.dtype), b, stride, pad, dilation, groups=z.shape[1])
    return _finish_conv(y, x, out_relu, want_stats)


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    out_relu: bool = False,
    want_stats: bool = False,
) -> tuple[Tensor, BNStats | None]:
    z = pending(x, None, None, False)
    b = None if bias is None else bias.to(z.dtype)
    y = F.conv2d(z, weight.to(z.dtype), b, padding=1)
    return _finish_conv(y, x, out_relu, want_stats)


def roi_align(
    xs: Sequence[Tensor],
    boxes: Tensor,
    levels: Sequence[int],
    scales: Sequence[float],
    size: int,
    sampling_ratio: int = 0,
    aligned: bool = False,
) -> Tensor:
    regions = boxes.new_zeros(len(boxes), xs[0].shape[1], size, size)
    for level, (x, scale) in enumerate(zip(xs, scales, strict=True)):
        rows = torch.tensor([i for i, of in enumerate(levels) if of == level], dtype=torch.long)
        rows = rows.to(boxes.device)
        args = (boxes[rows], size, scale, sampling_ratio, aligned)
        regions = regions.index_put((rows,), torchvision.ops.roi_align(x, *args))
    return regions


def pointwise_conv_bn(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    bias: Tensor | None = None,
    groups: int = 1,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    batches: int = 1,
) -> tuple[Tensor, BNStats, Tensor, Tensor]:
    if batches != 1:
        rest = (relu, bias, groups, gamma, beta, eps)
        return by_batch(
            batches, [x], [scale, shift], lambda x, a, b: pointwise_conv_bn(x, weight, a, b, *rest)
        )
    y, stats = pointwise_conv(x, weight, scale, shift, relu, bias, False, True, groups)
    assert stats is not None
    return y, stats, *bn_fold(stats, gamma, beta, eps)


def depthwise_conv_bn(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    bias: Tensor | None = None,
    stride: int = 1,
    dilation: int = 1,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    batches: int = 1,
) -> tuple[Tensor, BNStats, Tensor, Tensor]:
    if batches != 1:
        rest = (relu, bias, stride, dilation, gamma, beta, eps)
        return by_batch(
            batches, [x], [scale, shift], lambda x, a, b: depthwise_conv_bn(x, weight, a, b, *rest)
        )
    y, stats = depthwise_conv(x, weight, scale, shift, relu, bias, False, True, stride, dilation)
    assert stats is not None
    return y, stats, *bn_fold(stats, gamma, beta, eps)


def mixed_depthwise(
    x: Sequence[Tensor],
    weight: Sequence[Tensor],
    scale: Sequence[Tensor],
    shift: Sequence[Tensor],
    relu: bool,
    want_stats: bool,
    stride: int,
    dilation: Sequence[int],
) -> tuple[list[Tensor], list[BNStats | None]]:
    pairs: list[tuple[Tensor | None, Tensor | None]] = list(zip(scale, shift, strict=True))
    pairs = pairs or [(None, None)] * len(x)
    results = [
        depthwise_conv(t, w, a, b, relu, None, False, want_stats, stride, d)
        for t, w, (a, b), d in zip(x, weight, pairs, dilation, strict=True)
    ]
    return [y for y, _ in results], [s for _, s in results]


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleaves the channels of ``groups`` equal groups of (N, C, H, W)."""
    if groups == 1:
        return x
    # Not unflatten: torch's ONNX exporter makes constants of its height and width.
    n, c, h, w = x.shape
    return x.reshape(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def shuffle(x: Tensor, method: int) -> Tensor:
    """Channel shuffle: 0 none; 1 interleaves the halves; 2 even channels, then odd ones."""
    if method == 0:
        return x
    if method == 1:
        return channel_shuffle(x, 2)
    return torch.cat((x[:, 0::2], x[:, 1::2]), dim=1)


def shuffle_concat(
    left: Tensor,
    right: Tensor,
    left_scale: Tensor | None = None,
    left_shift: Tensor | None = None,
    right_scale: Tensor | None = None,
    right_shift: Tensor | None = None,
    left_relu: bool = False,
    right_relu: bool = False,
    method: int = 0,
    split: bool = False,
    batches: int = 1,
) -> tuple[Tensor, Tensor] | Tensor:
    if batches != 1:
        vectors = [left_scale, left_shift, right_scale, right_shift]
        rest = (left_relu, right_relu, method, split)
        return by_batch(
            batches,
            [left, right],
            vectors,
            lambda x, y, a, b, c, d: shuffle_concat(x, y, a, b, c, d, *rest),
        )
    a = pending(left, left_scale, left_shift, left_relu)
    b = pending(right, right_scale, right_shift, right_relu)
    y = shuffle(torch.cat((a, b), dim=1), method).to(left.dtype)
    if not split:
        return channels_last(y)
    half = y.shape[1] // 2
    return channels_last(y[:, :half]), channels_last(y[:, half:])


def mixed_sum(
    y: Sequence[Tensor],
    scale: Sequence[Tensor],
    shift: Sequence[Tensor],
    weights: Tensor,
    residual: Tensor | None = None,
) -> Tensor:
    total = sum(
        w * pending(t, a, b, False) for w, t, a, b in zip(weights, y, scale, shift, strict=True)
    )
    if residual is not None:
        total = total + residual
    return channels_last(total.to(y[0].dtype))


def shuffle_block(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    kernel: int,
    stride: int,
    method: int,
) -> Tensor:
    main = 6 if kernel == 0 else 3

    def chain(z: Tensor, ws: Sequence[Tensor], bs: Sequence[Tensor]) -> Tensor:
        s = stride
        for w, b in zip(ws, bs, strict=True):
            w, b = w.to(z.dtype), b.to(z.dtype)
            if w.shape[-1] > 1:
                z = F.conv2d(z, w, b, s, w.shape[-1] // 2, groups=z.shape[1])
                s = 1
            else:
                z = F.relu(F.conv2d(z, w, b))
        return z

    z = x.to(wide_dtype(x))
    if stride == 2:
        left, right = chain(z, weights[main:], biases[main:]), z
    else:
        left, right = shuffle(z, method).chunk(2, dim=1)
    y = torch.cat((left, chain(right, weights[:main], biases[:main])), dim=1)
    return channels_last(y.to(x.dtype))


Pending = tuple[Tensor, Tensor | None, Tensor | None, bool]
"""A map, and the affine map and the ReLU that are pending on it."""


def shuffle_block_stats(
    left: Tensor,
    right: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    weights: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    eps: Sequence[float],
    kernel: int,
    stride: int,
    out_method: int,
    batches: int = 1,
) -> tuple[Tensor | tuple[Tensor, Tensor], list[BNStats]]:
    if batches != 1:
        rest = (relu, weights, gammas, betas, eps, kernel, stride, out_method)
        return by_batch(
            batches,
            [left, right],
            [scale, shift],
            lambda x, y, a, b: shuffle_block_stats(x, y, a, b, *rest),
        )
    all_stats: list[BNStats] = []
    layers = list(zip(weights, gammas, betas, eps, strict=True))
    main = 6 if kernel == 0 else 3

    def chain(z: Pending, some: list[tuple[Tensor, Tensor, Tensor, float]]) -> Pending:
        s = stride
        for w, gamma, beta, e in some:
            spatial = w.shape[-1] > 1
            if spatial:
                y, stats = depthwise_conv(z[0], w, *z[1:], want_stats=True, stride=s)
                s = 1
            else:
                y, stats = pointwise_conv(z[0], w, *z[1:], want_stats=True)
            assert stats is not None
            all_stats.append(stats)
            z = (y, *bn_fold(stats, gamma, beta, e), not spatial)
        return z

    a: Pending = (left, scale, shift, relu)
    b = chain(a if right is None else (right, None, None, False), layers[:main])
    if right is None:
        a = chain(a, layers[main:])
    affine = (*a[1:3], *b[1:3])
    split = out_method != 0
    return shuffle_concat(a[0], b[0], *affine, a[3], b[3], out_method, split), all_stats
