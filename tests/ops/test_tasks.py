"""How the CPU's operators share their work among threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from detnas_d2 import ops
from detnas_d2.layers import ShuffleBlock
from detnas_d2.layers.folded_norm import conv_norm_acts, kernel_of
from detnas_d2.modeling import DecodedBackbone
from detnas_d2.ops.extension import has_extension
from detnas_d2.search_space import SPACES
from tests.ops.compare import channels_last, tensors

pytestmark = pytest.mark.skipif(
    not (has_extension() and hasattr(torch.ops.detnas_d2, "cpu_product_tasks")),
    reason="the CPU's operators are not built",
)

# COCO-FPN-300M as released.
PATH = "7x7 5x5 7x7 3x3 / 7x7 5x5 5x5 7x7 / xception xception 5x5 xception 3x3 3x3 xception 5x5 / "
PATH += "xception 5x5 xception 7x7"


def backbone() -> DecodedBackbone:
    """The 300M backbone, of modules."""
    space = SPACES["detnas_small"]
    net = DecodedBackbone(
        space.path(PATH), norm=nn.BatchNorm2d, shuffle_method=2, out_features=["stage4"],
        init="default",
    )  # fmt: skip
    net.fused_ops = "off"
    return net.eval()


def work(height: int, width: int) -> list[tuple[int, int, int]]:
    """Of the 300M backbone without its stem: multiply-adds, tasks of 1 and of 16 threads."""
    net = backbone()
    found = []

    def look(conv: nn.Conv2d, _: tuple, y: Tensor) -> None:
        n, c, h, w = y.shape
        count = y.numel() * conv.weight[0].numel()
        if conv.kernel_size == (1, 1):
            tasks = [torch.ops.detnas_d2.cpu_product_tasks(n * h * w, c, t) for t in (1, 16)]
        elif conv.groups == c:
            tasks = [torch.ops.detnas_d2.cpu_depthwise_tasks(n, c, h)] * 2
        else:
            return
        found.append((count, *tasks))

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look)
    with torch.no_grad():
        net(torch.rand(1, 3, height, width))
    return found


def blocks(height: int, width: int) -> list[tuple[int, list]]:
    """Of its blocks: multiply-adds, and what ``cpu_block_speedup`` wants besides the threads."""
    net = backbone()
    count, found = [0], []

    def multiplied(conv: nn.Conv2d, _: tuple, y: Tensor) -> None:
        count[0] += y.numel() * conv.weight[0].numel()

    def begin(block: ShuffleBlock, _: tuple) -> None:
        count[0] = 0

    def end(block: ShuffleBlock, inputs: tuple, _: Tensor) -> None:
        _, c, h, w = inputs[0].shape
        halves = [c, c] if block.stride == 2 else [c // 2, c // 2]
        channels = [layer.conv.out_channels for layer in conv_norm_acts(block)]
        found.append((count[0], [channels, *halves, h, w, kernel_of(block), block.stride]))

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(multiplied)
        elif isinstance(module, ShuffleBlock):
            module.register_forward_pre_hook(begin)
            module.register_forward_hook(end)
    with torch.no_grad():
        net(torch.rand(1, 3, height, width))
    return found


def bound(layers: list[tuple[int, int]], threads: int) -> float:
    """The speed-up by threads, of which each takes one run of tasks, as at::parallel_for does."""
    alone = sum(count for count, _ in layers)
    return alone / sum(count * -(-tasks // threads) / tasks for count, tasks in layers)


def test_sixteen_threads_have_work() -> None:
    layers = work(320, 480)
    assert len(layers) == 86
    assert bound([(count, tasks) for count, _, tasks in layers], 16) > 12
    # With one thread columns are not split, which would read inputs several times.
    assert bound([(count, tasks) for count, tasks, _ in layers], 16) < 12
    assert sum(tasks >= 58 for _, _, tasks in layers) == 50  # of the 1x1 convolutions


def test_sixteen_threads_have_work_in_evaluation() -> None:
    """With ranges of rows alone, of which neighbours make some twice, it would be 5.8 times."""
    found = blocks(320, 480)
    assert len(found) == 20
    for threads, least in ((1, 1), (2, 1.85), (4, 3.7), (16, 12)):
        speedups = [torch.ops.detnas_d2.cpu_block_speedup(*args, threads) for _, args in found]
        assert all(0.6 * threads < s < threads + 1e-9 for s in speedups)
        times = [count / s for (count, _), s in zip(found, speedups, strict=True)]
        assert least <= sum(count for count, _ in found) / sum(times)


@pytest.mark.parametrize("shape", [(1, 160, 10, 15), (2, 40, 21, 13), (1, 33, 7, 9)])
def test_any_number_of_threads_has_the_same_bits(shape: tuple) -> None:
    torch.manual_seed(0)
    n, c, h, w = shape
    x = channels_last(torch.randn(shape)).requires_grad_()
    affine = torch.rand(c, requires_grad=True), torch.randn(c, requires_grad=True)
    weight, taps = (torch.randn(s, requires_grad=True) for s in ((c + 7, c, 1, 1), (c, 1, 5, 5)))

    def run() -> list[Tensor]:
        found = []
        for relu in (True, False):
            for op, own in ((ops.pointwise_conv, weight), (ops.depthwise_conv, taps)):
                y, stats = op(x, own, *affine, relu, want_stats=True)
                grads = torch.autograd.grad(
                    [y, stats.mean, stats.m2], [x, own, *affine],
                    [torch.ones_like(y), torch.ones_like(stats.mean), torch.ones_like(stats.m2)],
                )  # fmt: skip
                found += [*tensors((y, stats)), *grads]
        return found

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run()
        for count in (2, 5, 16):
            torch.set_num_threads(count)
            for a, b in zip(run(), expected, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)
