"""What is counted of operators, and what a compiler would fuse of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from detnas_d2.ops import flops
from tests.ops.compare import block

C, P = 8, 6 * 10


@pytest.fixture
def traffic(benchmark_module):
    return benchmark_module("traffic")


def layer(training: bool) -> nn.Module:
    made = nn.Sequential(nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C), nn.ReLU())
    return made.train(training)


def traced(traffic, f, *args: Tensor) -> list:
    with torch.no_grad(), traffic.Trace() as trace:
        f(*args)
    return trace.nodes


def test_a_layer_in_evaluation(traffic) -> None:
    x = torch.randn(1, C, 6, 10)
    convolution, norm, relu = traced(traffic, layer(False), x)
    assert (convolution.elements, convolution.multiply_adds) == (2 * C * P + C * C, C * C * P)
    assert norm.elements == 2 * C * P + 4 * C and relu.elements == 2 * C * P
    assert [n.launches for n in (convolution, norm, relu)] == [1, 1, 1]
    # The BatchNorm and ReLU are one launch, which reads the convolution's output.
    first, second = traffic.fused([convolution, norm, relu])
    assert first is convolution and second.elements == 2 * C * P + 4 * C


def test_a_layer_in_training_reads_its_map_twice(traffic) -> None:
    nodes = traced(traffic, layer(True), torch.randn(2, C, 6, 10))
    names = [n.name.split(", ")[-1] for n in nodes]
    assert names == ["add_", "convolution", "statistics", "normalise", "relu"] or names == [
        "convolution", "add_", "statistics", "normalise", "relu"
    ]  # fmt: skip
    fused = traffic.fused(nodes)
    assert [n.launches for n in fused] == [1, 1, 1]  # without the number of calls
    assert sum(n.elements for n in fused) == pytest.approx((2 + 1 + 2) * 2 * C * P, rel=0.1)


def test_halves_and_concatenation(traffic) -> None:
    """A block of stride 1: one half goes past the other's layer, then both are shuffled."""
    inner, x = layer(False), torch.randn(1, 2 * C, 6, 10)

    def block(x: Tensor) -> Tensor:
        left, right = x.relu().chunk(2, 1)
        y = torch.cat((left, inner(right)), 1)
        return y.view(1, 2, C, 6, 10).transpose(1, 2).reshape(1, 2 * C, 6, 10)

    before, convolution, after = traffic.fused(traced(traffic, block, x))
    assert convolution.name == "convolution"
    assert convolution.elements == 2 * C * P + C * C
    # ReLU of the whole map; the rest reads half of that and the convolution's output.
    assert before.elements == 4 * C * P
    assert sum(after.writes.values()) == 2 * C * P
    assert sum(after.reads.values()) == pytest.approx(2 * C * P, rel=0.1)


def test_what_is_written_in_place_is_a_result(traffic) -> None:
    inner, x = nn.Conv2d(C, C, 1), torch.randn(1, C, 6, 10)
    convolution, after = traffic.fused(traced(traffic, lambda: inner(x).relu_().mul_(2)))
    assert convolution.name == "convolution"
    assert (sum(after.reads.values()), sum(after.writes.values())) == (C * P, C * P)


def test_in_place_and_expanded(traffic) -> None:
    x, row = torch.randn(4, 5), torch.randn(1, 5)
    (node,) = traced(traffic, lambda: x.add_(row.expand(4, 5)))
    assert (sum(node.reads.values()), sum(node.writes.values())) == (25, 20)
    assert traced(traffic, lambda: x.view(20)[:3]) == []


@pytest.mark.parametrize("kernel", [0, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_launches_inside_a_block(traffic, kernel: int, stride: int) -> None:
    weights, biases = block(2 * C, kernel, stride)
    x = torch.randn(2, 2 * C, 6, 10)
    found = traffic.block_launches(x, None, weights, biases, kernel, stride)
    # As ``tests/emulator`` counts them: a depthwise convolution goes with the product behind it.
    assert len(found) == {(5, 1): 3, (5, 2): 3, (0, 1): 4, (0, 2): 4}[kernel, stride]
    expected = flops.block(x.shape, [w.shape for w in weights], kernel, stride) // 2
    depthwise = sum(w.shape[-1] > 1 for w in weights)
    assert len(weights) - depthwise == len(found) - (stride == 1)
    assert sum(node.multiply_adds + node.vector_adds for node in found) == expected
    pixels = 2 * P // stride**2
    taps = [w.numel() * pixels for w in weights if w.shape[-1] > 1]
    assert sum(node.vector_adds for node in found) == sum(taps)
    if (kernel, stride) == (5, 1):
        half = 2 * C * P
        maps = [4 * half] + [2 * half] * 2
        others = [0, *(w.numel() + b.numel() for w, b in zip(weights, biases, strict=True))]
        others = [*others[:2], others[2] + others[3]]
        assert [n.elements for n in found] == [m + o for m, o in zip(maps, others, strict=True)]
        # Between others the launch of halves is none, and what passes by goes with the last one.
        chained = traffic.block_launches(x[:, C:], x[:, :C], weights, biases, kernel, stride, 2)
        moved = [n.elements for n in found[1:]]
        assert [n.elements for n in chained] == [moved[0], moved[1] + 2 * half]
        first = traffic.block_launches(x, None, weights, biases, kernel, stride, 2)
        assert first == [found[0], *chained]
    if (kernel, stride) == (5, 2):  # the projection reads the whole input
        last = found[2]
        weights_of = sum(
            w.numel() + b.numel() for w, b in zip(weights[3:], biases[3:], strict=True)
        )
        assert last.reads[0] == x.numel() + weights_of
        assert last.writes[1] == weights[4].shape[0] * pixels


def test_depthwise_convolutions_that_are_made_again(traffic) -> None:
    """Of channels that no vector divides they are launches of their own; products of many columns
    make them again."""
    for channels, launches, again in ((2 * 6, 4, 1), (2 * 320, 3, 2)):
        weights, biases = block(channels, 3, 1)
        found = traffic.block_launches(torch.randn(1, channels, 5, 5), None, weights, biases, 3, 1)
        assert len(found) == launches
        assert sum(node.vector_adds for node in found) == again * 25 * weights[1].numel()


def test_lines(traffic, benchmark_module) -> None:
    kernel = benchmark_module("device_model").Kernel

    def nodes(pixels: int) -> list:
        return traced(
            traffic, nn.Sequential(layer(False), layer(False)), torch.randn(1, C, 1, pixels)
        )

    found = traffic.lines(nodes(40), nodes(60), (40, 60))
    # Of both layers together.
    assert set(found) == {
        kernel(2, 2 * C * C, 4 * C, 2 * C * C, 0),
        kernel(2, 8 * C, 4 * C, 0, 0),
        kernel(2, 0, 4 * C, 0, 0),
    }
    with pytest.raises(ValueError, match="expected the same launches for 40 and 60 pixels"):
        traffic.lines(nodes(40), nodes(60)[1:], (40, 60))


def test_launches_of_stock_modules(benchmark_module, traffic) -> None:
    """Of the 300M backbone: as many convolutions as it has, and as many multiply-adds as are told
    of it (0.88 G at 320x480) at every size."""
    launches = benchmark_module("launches")
    ways = launches.traffic_of(None, "64x96")
    assert ways.keys() == {"eager", "torch.compile"}
    for way, forwards in ways.items():
        assert forwards.keys() == {"recalibration", "training", "evaluation"}
        for name, kernels in forwards.items():
            macs = 320 * 480 * sum(k.multiply_adds + k.vector_adds for k in kernels)
            assert macs == pytest.approx(0.88e9, rel=0.01), (way, name)
    total = {
        way: {name: sum(k.launches for k in kernels) for name, kernels in forwards.items()}
        for way, forwards in ways.items()
    }
    # 87 convolutions and BatchNorms, whose statistics are a launch more in training.
    assert total["eager"]["training"] == total["eager"]["recalibration"]
    assert total["eager"]["evaluation"] > 3 * 87 - 40
    assert 87 < total["torch.compile"]["evaluation"] < total["eager"]["evaluation"]
    assert total["torch.compile"]["training"] >= total["torch.compile"]["evaluation"] + 87
    moved = {
        way: sum(k.pixel_elements for k in forwards["evaluation"]) for way, forwards in ways.items()
    }
    assert moved["torch.compile"] < 0.75 * moved["eager"]
