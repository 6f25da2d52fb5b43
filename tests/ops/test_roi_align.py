from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from detnas_d2 import ops
from detnas_d2.ops import reference
from tests.ops.compare import CAPABILITIES, capability, channels_last

SCALES = [1 / 4, 1 / 8, 1 / 16]


def pyramid(channels: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Of two images of 96 x 128 pixels."""
    xs = [torch.randn(2, channels, round(96 * s), round(128 * s)).to(dtype) for s in SCALES]
    return [channels_last(xs[0]), *xs[1:]]


def regions(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[int]]:
    """Boxes of all sizes, many of them partly or wholly outside, some without extent."""
    first = torch.rand(count, 2) * torch.tensor([160.0, 130.0]) - 16
    extent = torch.rand(count, 2) ** 3 * 120 * (torch.rand(count, 1) > 0.1)
    images = torch.randint(0, 2, (count, 1))
    boxes = torch.cat([images, first, first + extent], dim=1).to(dtype)
    return boxes, torch.randint(0, 3, (count,)).tolist()


@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 5])
def test_agrees_with_the_reference(name: str, aligned: bool, sampling_ratio: int) -> None:
    torch.manual_seed(sampling_ratio)
    with capability(name):
        for channels, size in ((1, 1), (3, 7), (33, 7), (64, 2)):
            xs, (boxes, levels) = pyramid(channels), regions(60)
            args = (boxes, levels, SCALES, size, sampling_ratio, aligned)
            found, expected = ops.roi_align(xs, *args), reference.roi_align(xs, *args)
            assert found.is_contiguous(memory_format=torch.channels_last)
            # Samples' places differ by rounding.
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            exact = reference.roi_align([x.double() for x in xs], boxes.double(), *args[1:])
            wide = ops.roi_align([x.double() for x in xs], boxes.double(), *args[1:])
            torch.testing.assert_close(wide, exact, rtol=1e-12, atol=1e-12)


def test_does_not_depend_on_threads_or_layout() -> None:
    torch.manual_seed(0)
    xs, (boxes, levels) = pyramid(24), regions(90)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(ops.roi_align(xs, boxes, levels, SCALES, 7, 2))
    finally:
        torch.set_num_threads(threads)
    again = ops.roi_align([x.contiguous() for x in xs], boxes, levels, SCALES, 7, 2)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], again)


def test_half_precision_is_computed_in_single() -> None:
    torch.manual_seed(0)
    xs, (boxes, levels) = pyramid(9, torch.bfloat16), regions(20)
    boxes = boxes.round().bfloat16()
    found = ops.roi_align(xs, boxes, levels, SCALES, 3, 2)
    wide = ops.roi_align([x.float() for x in xs], boxes.float(), levels, SCALES, 3, 2)
    assert torch.equal(found, wide.bfloat16())


def test_no_boxes_and_empty_maps() -> None:
    xs = pyramid(5)
    assert ops.roi_align(xs, torch.zeros(0, 5), [], SCALES, 7, 2).shape == (0, 5, 7, 7)
    xs[2] = torch.zeros(2, 5, 0, 3)
    boxes = torch.tensor([[1.0, 2, 2, 30, 40]])
    assert not ops.roi_align(xs, boxes, [2], SCALES, 7, 2).any()


def test_errors_name_the_argument() -> None:
    xs, (boxes, levels) = pyramid(4), regions(3)
    bad_image, nan = boxes.clone(), boxes.clone()
    bad_image[1, 0], nan[2, 3] = 2, float("nan")
    huge = boxes.clone()
    huge[0, 3] = 1e20
    for args, message in (
        ((xs, boxes, [0, 3, 0], SCALES, 7), "levels: expected 0 to 2, got 3"),
        ((xs, boxes, levels, SCALES[:2], 7), "scales: expected one for each of 3 maps"),
        ((xs, boxes, levels, SCALES, 0), "size: expected"),
        ((xs, boxes, levels, SCALES, 7, -1), "sampling_ratio: expected"),
        ((xs, bad_image, levels, SCALES, 7), "boxes: expected images of 0 to 1, got 2"),
        ((xs, nan, levels, SCALES, 7), "boxes: expected finite values"),
        ((xs, huge, levels, SCALES, 7), "boxes: expected fewer than"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.roi_align(*args)


def test_opcheck_and_gradients_are_refused() -> None:
    torch.manual_seed(0)
    xs, (boxes, levels) = pyramid(3, torch.float64), regions(6, torch.float64)
    opcheck(torch.ops.detnas_d2.roi_align, (xs, boxes, levels, SCALES, 2, 2, True))
    leaf = xs[0].clone().requires_grad_()
    with pytest.raises(NotImplementedError, match="roi_align: not differentiable"):
        ops.roi_align([leaf, *xs[1:]], boxes, levels, SCALES, 2)
