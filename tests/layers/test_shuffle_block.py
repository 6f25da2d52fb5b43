"""The choice blocks against their definition, written with plain functions."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detnas_d2.layers import ConvNormAct, ShuffleBlock, get_norm, shuffle_split

NORM = partial(get_norm, "BN")


@pytest.mark.parametrize("channels", [2, 6, 64])
def test_shuffle_conventions(channels: int) -> None:
    x = torch.arange(channels).float().view(1, channels, 1, 1).expand(2, channels, 3, 5)
    half = channels // 2
    interleaved = [c for pair in zip(range(half), range(half, channels), strict=True) for c in pair]
    for method, expected in (
        (1, (interleaved[:half], interleaved[half:])),
        (2, (list(range(0, channels, 2)), list(range(1, channels, 2)))),
    ):
        left, right = shuffle_split(x, method)
        assert left[0, :, 0, 0].tolist() == expected[0]
        assert right[1, :, 2, 4].tolist() == expected[1]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shuffle_of_any_layout(layout: torch.memory_format) -> None:
    x = torch.randn(2, 8, 4, 6)
    for method in (1, 2):
        for plain, other in zip(
            shuffle_split(x, method), shuffle_split(x.to(memory_format=layout), method), strict=True
        ):
            torch.testing.assert_close(plain, other)


def _apply(
    unit: ConvNormAct, x: Tensor, *, kernel: int, depthwise: bool, stride: int = 1
) -> Tensor:
    groups = x.shape[1] if depthwise else 1
    x = F.conv2d(x, unit.conv.weight, None, stride, kernel // 2, 1, groups)
    norm = unit.norm
    shape = (1, -1, 1, 1)
    x = (x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + 1e-5).sqrt()
    return x * norm.weight.view(shape) + norm.bias.view(shape)


def _reference(block: ShuffleBlock, x: Tensor, op: str, stride: int, method: int) -> Tensor:
    if stride == 2:
        left, right = x, x
    elif method == 2:
        left, right = x[:, 0::2], x[:, 1::2]
    else:
        c = x.shape[1] // 2
        order = [i // 2 + c * (i % 2) for i in range(2 * c)]
        left, right = x[:, order[:c]], x[:, order[c:]]
    kernel = 3 if op == "xception" else int(op[0])
    units = list(block.main)
    if op == "xception":
        for i in range(0, 6, 2):
            s = stride if i == 0 else 1
            right = _apply(units[i], right, kernel=3, depthwise=True, stride=s)
            right = _apply(units[i + 1], right, kernel=1, depthwise=False).relu()
    else:
        right = _apply(units[0], right, kernel=1, depthwise=False).relu()
        right = _apply(units[1], right, kernel=kernel, depthwise=True, stride=stride)
        right = _apply(units[2], right, kernel=1, depthwise=False).relu()
    if stride == 2:
        left = _apply(block.projection[0], left, kernel=kernel, depthwise=True, stride=2)
        left = _apply(block.projection[1], left, kernel=1, depthwise=False).relu()
    return torch.cat((left, right), 1)


@pytest.mark.parametrize(
    ("op", "expansion"), [("3x3", 1), ("5x5", 1), ("7x7", 3), ("xception", 1), ("xception", 2)]
)
@pytest.mark.parametrize(("stride", "method"), [(1, 1), (1, 2), (2, 1)])
@pytest.mark.parametrize("size", [(8, 10), (7, 5), (1, 1)])
def test_block_equals_its_definition(
    op: str, expansion: int, stride: int, method: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    channels = 12 if stride == 1 else 6
    options = {"stride": stride, "norm": NORM, "shuffle_method": method}
    block = ShuffleBlock(channels, 12, op=op, expansion=expansion, **options)
    middle = {conv.out_channels for unit in list(block.main)[:-1] for conv in [unit.conv]}
    assert middle == ({6 * expansion} if op != "xception" else {6, 6 * expansion})
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    block.double().eval()
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    torch.testing.assert_close(block(x), _reference(block, x, op, stride, method))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": 3}, "stride 3"),
        ({"out_channels": 16}, "8 -> 16"),
        ({"op": "9x9"}, "'9x9'"),
        ({"shuffle_method": 3}, "shuffle_method 3"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    options = {"op": "3x3", "stride": 1, "norm": NORM, "shuffle_method": 1, "out_channels": 8}
    options.update(arguments)
    with pytest.raises(ValueError, match=message):
        ShuffleBlock(8, **options)
