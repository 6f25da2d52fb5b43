"""Memory and file size of paths: by hand, and as an exported file has it."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from detnas_d2.engine.export import write_onnx
from detnas_d2.layers import get_norm
from detnas_d2.modeling import DecodedBackbone
from detnas_d2.search_space import SPACES, SearchSpace
from detnas_d2.search_space.additive import PeakTable
from detnas_d2.search_space.footprint import footprints

SPACE = SearchSpace(
    "mixed", 8, (24, 48), (2, 2), 64,
    ops=(("3x3", "7x7_e3", "ir_k5_e3_d2", "skip"), ("xception", "5x5", "conv_k3", "skip")),
)  # fmt: skip


def test_memory_by_hand() -> None:
    """Of images of 32 x 64: the stem writes 16 x 32, the blocks 8 x 16 and 4 x 8."""
    table = footprints(SPACE, (32, 64)).memory
    assert table.base == 4 * (3 * 32 * 64 + 8 * 16 * 32)
    (first, second, *_) = table.entries
    x, pixels, out_pixels = 8 * 16 * 32, 16 * 32, 8 * 16
    # 3x3, stride 2: the 1x1 convolution of the main branch reads x and writes 12 maps of it; then
    # the depthwise one reads these, beside x.
    assert first[0] == 4 * max(x + 12 * pixels, x + 12 * pixels + 12 * out_pixels)
    assert first[1] == 4 * (x + 36 * pixels + 36 * out_pixels)
    # Inverted residual: three times as many maps as it has input channels.
    assert first[2] == 4 * (x + 24 * pixels + 24 * out_pixels)
    # Stride 1 on 24 channels: half of them go through; skip holds its input alone.
    x = 24 * out_pixels
    assert second[0] == 4 * (x + 12 * out_pixels + 12 * out_pixels)
    assert second[1] == 4 * (x + 36 * out_pixels + 36 * out_pixels)
    assert second[3] == 4 * x


def test_a_peak_is_the_most_of_any_layer() -> None:
    table = PeakTable(3, ((1, 5), (4, 2), (0, 9)))
    for choices in ((0, 1, 0), (0, 0, 0), (1, 1, 0), (0, 0, 1)):
        rows = [row[c] for row, c in zip(table.entries, choices, strict=True)]
        assert table.total(choices) == max(3, *rows)
    assert (table.cheapest(), table.most_expensive()) == (3, 9)
    assert table.total(table.cheapest_choices()) == 3 and table.most_expensive_choices()[2] == 1


class _Last(nn.Module):
    """The last feature of a backbone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)["stage2"]


@pytest.mark.parametrize("seed", range(3))
def test_the_file_has_as_many_bytes_of_weights(seed: int, tmp_path: Path) -> None:
    path = SPACE.random_path(random.Random(seed))
    norm = partial(get_norm, "BN")
    net = DecodedBackbone(path, norm=norm, shuffle_method=1, out_features=["stage2"]).eval()
    net.fused_ops = "off"
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # equal biases would be written once
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)

    file = tmp_path / "net.onnx"
    adapter = _Last(net).requires_grad_(False)
    write_onnx(adapter, torch.rand(1, 3, 32, 64), ("stage2",), str(file))
    weights = [
        len(value.raw_data)
        for value in onnx.load(str(file)).graph.initializer
        if value.data_type == onnx.TensorProto.FLOAT and len(value.dims) in (1, 4)
    ]
    assert sum(weights) == footprints(SPACE, (32, 64)).file.total(path.choices)


def test_more_pixels_need_more_memory_and_no_larger_file() -> None:
    small, large = (footprints(SPACES["detnas_tiny"], size) for size in ((32, 32), (64, 64)))
    assert small.file == large.file
    assert large.memory.cheapest() == 4 * small.memory.cheapest()
