"""Regions of the levels of a pyramid, without gradients."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from detnas_d2.ops import reference
from detnas_d2.ops.extension import has_cpu_kernel
from detnas_d2.ops.registration import channels_last, operator, register_fake, takes

_HAS_KERNEL = has_cpu_kernel("roi_align")


def roi_align(
    xs: Sequence[Tensor],
    boxes: Tensor,
    levels: Sequence[int],
    scales: Sequence[float],
    size: int,
    sampling_ratio: int = 0,
    aligned: bool = False,
) -> Tensor:
    """torchvision's ``roi_align`` of boxes on several maps, each on the map of its level.

    Compiled on the CPU alone. There channels lie together, so that a sample is read as vectors, and
    regions are written where they belong.

    Args:
        xs: maps (N, C, H, W) of one dtype and number of channels; channels_last is read in place.
        boxes: (K, 5), dtype of the maps: image, x0, y0, x1, y1 in pixels of the image.
        levels: which of the maps, for each box.
        scales: pixels of each map in a pixel of the image.
        size: bins of a region in each direction.
        sampling_ratio: samples of a bin in each direction; 0: as many as it has pixels.
        aligned: pixels' centres are at halves, as in Detectron2's ROIAlignV2.

    Returns:
        (K, C, size, size), on the CPU channels_last.

    Raises:
        NotImplementedError: not differentiable, but an input requires grad where gradients are
            recorded.
        RuntimeError: an argument has another shape, dtype or device than it should, or a box is not
            finite.
    """
    args = (boxes, list(levels), list(scales), size, sampling_ratio, aligned)
    if not takes_regions(xs[0]) or not takes(xs[0]):
        return reference.roi_align(xs, *args)
    return _roi_align(list(xs), *args)


def takes_regions(x: Tensor) -> bool:
    """Whether the compiled operator takes maps like this: on the CPU, where it is built."""
    return _HAS_KERNEL and x.is_cpu


def _fake(xs, boxes, levels, scales, size, sampling_ratio, aligned):
    return channels_last(xs[0], boxes.shape[0], xs[0].shape[1], size, size)


if _HAS_KERNEL:
    register_fake("roi_align", _fake)
    _roi_align = operator("roi_align")
