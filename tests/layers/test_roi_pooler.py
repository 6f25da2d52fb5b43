from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor

from detnas_d2 import ops
from detnas_d2.layers.roi_pooler import LevelsPooler

SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
OPTIONS = {"output_size": 7, "sampling_ratio": 2, "pooler_type": "ROIAlign"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    found: list[tuple] = []
    right = ops.roi_align
    monkeypatch.setattr(ops, "roi_align", lambda *args: found.append(args) or right(*args))
    return found


def pooler(scales: tuple[float, ...] = SCALES, **options: object) -> ROIPooler:
    made = ROIPooler(scales=scales, **{**OPTIONS, **options})
    made.__class__ = LevelsPooler
    return made


def inputs(images: int = 2, scales: tuple[float, ...] = SCALES) -> tuple[list, list]:
    xs = [torch.randn(images, 12, round(256 * s), round(320 * s)) for s in scales]
    corner = torch.rand(images, 40, 2) * 200
    size = torch.rand(images, 40, 2) ** 2 * 300
    boxes = torch.cat([corner, corner + size], dim=2)
    return xs, [Boxes(one[: 40 - 7 * i]) for i, one in enumerate(boxes)]


def both(made: ROIPooler, xs: list[Tensor], boxes: list) -> tuple[Tensor, Tensor]:
    other = copy.deepcopy(made)
    other.__class__ = ROIPooler
    return made(xs, boxes), other(xs, boxes)


@pytest.mark.parametrize("kind", ["ROIAlign", "ROIAlignV2"])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_agrees_with_detectron2s(kind: str, sampling_ratio: int, calls: list) -> None:
    torch.manual_seed(0)
    options = {"pooler_type": kind, "sampling_ratio": sampling_ratio}
    with torch.no_grad():
        for scales in (SCALES, SCALES[:1]):
            made = pooler(scales, **options)
            found, expected = both(made, *inputs(scales=scales))
            # Samples' places differ by rounding.
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert len(calls) == 2 and len(set(calls[0][2])) > 1


def test_falls_back_to_detectron2s(calls: list) -> None:
    torch.manual_seed(0)
    xs, boxes = inputs()

    def same(made: ROIPooler, xs: list = xs, boxes: list = boxes) -> None:
        found, expected = both(made, xs, boxes)
        assert torch.equal(found, expected)

    leaves = [x.clone().requires_grad_() for x in xs]
    found = pooler()(leaves, boxes)  # gradients are recorded
    found.sum().backward()
    assert leaves[0].grad is not None
    with torch.no_grad():
        same(pooler(pooler_type="ROIPool"))
        same(pooler(SCALES[:1], output_size=(7, 5)), xs[:1])
        same(pooler(), [x.double() for x in xs], [Boxes(b.tensor.double()) for b in boxes])
        hooked = pooler()
        handle = hooked.level_poolers[1].register_forward_hook(lambda *_: None)
        same(hooked)
        handle.remove()
        with torch.autocast("cpu", torch.bfloat16):
            same(pooler())
    assert not calls
