"""What is kept within a block of weights_stay, and that nothing of it is after."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from detnas_d2.layers import folded_norm, kept_weights
from detnas_d2.layers.dense_conv import use_conv3x3
from detnas_d2.layers.kept_weights import weights_stay
from detnas_d2.layers.linear_of_maps import LEAST_REGIONS, use_maps
from detnas_d2.ops.autotune import AutotuneCache
from tests.layers.fused_backbones import TINY, backbone


@pytest.fixture
def digests(monkeypatch) -> list[int]:
    """Of how many modules each call of ``digest`` was."""
    calls: list[int] = []
    original = kept_weights._digest

    def counted(tensors: list[Tensor], counts: list[int]) -> list[int]:
        calls.append(len(counts))
        return original(tensors, counts)

    for module in (kept_weights, folded_norm):
        monkeypatch.setattr(module, "_digest", counted)
    return calls


def fused(seed: int = 0) -> nn.Module:
    net = backbone(seed=seed, last=True).eval()
    net.fused_ops = "on"
    return net


def neck() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 96, 3, padding=1))
    use_conv3x3(net, "on", AutotuneCache())
    return net


def head() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(8 * 6, 24))
    use_maps(net)
    return net


def maps(*size: int) -> Tensor:
    return torch.randn(size).contiguous(memory_format=torch.channels_last)


def same(a: object, b: object) -> bool:
    if isinstance(a, dict):
        return all(torch.equal(a[name], b[name]) for name in a)
    return torch.equal(a, b)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "backbone": (fused, (2, 3, 65, 40), TINY.num_layers + 2),
    "3x3 convolutions": (neck, (1, 64, 21, 18), 2),
    "linear": (head, (LEAST_REGIONS, 8, 2, 3), 1),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_each_module_is_looked_up_once(case: str, digests: list[int]) -> None:
    make, size, modules = CASES[case]
    net, x = make(), maps(*size)
    expected = net(x)
    assert sum(digests) == modules
    for _ in range(2):
        digests.clear()
        with weights_stay(net):
            for _ in range(3):
                assert same(net(x), expected)
        assert sum(digests) == modules
    digests.clear()
    for _ in range(3):
        assert same(net(x), expected)
    assert sum(digests) == 3 * modules


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_writes_count_between_blocks_and_not_within(case: str) -> None:
    make, size, _ = CASES[case]
    net, x = make(), maps(*size)
    weights = [p for p in net.parameters() if p.dim() > 1]

    def write() -> None:
        for weight in weights:
            weight.data.mul_(1.25)

    with weights_stay(net):
        before = net(x)
        write()
        assert same(net(x), before)  # as documented
    after = net(x)
    assert not same(after, before)
    write()
    with weights_stay(net):
        now = net(x)
        assert not same(now, after) and same(net(x), now)
    assert same(net(x), now)


@torch.no_grad()
def test_a_block_ends_with_an_exception_and_is_of_its_thread_and_model() -> None:
    net, other, x = fused(), fused(1), maps(1, 3, 65, 40)
    seen: list[object] = []

    def write(model: nn.Module) -> None:
        model.get_parameter("blocks.0.main.0.conv.weight").data.mul_(2)

    @torch.no_grad()
    def elsewhere() -> None:
        seen.append(net(x))

    with pytest.raises(ZeroDivisionError), weights_stay(net):
        before = net(x)
        others = other(x)
        for model in (net, other):
            write(model)
        assert same(net(x), before) and not same(other(x), others)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        with weights_stay(net):  # looks anew
            now = net(x)
        assert same(net(x), before)
        raise ZeroDivisionError
    assert not same(now, before) and same(seen[0], now) and same(net(x), now)
    assert not kept_weights._own.blocks


@pytest.mark.parametrize("room", [None, 0, 30_000])
@torch.no_grad()
def test_other_statistics_are_followed(room: int | None, monkeypatch, digests: list[int]) -> None:
    if room is not None:
        monkeypatch.setattr(kept_weights, "MOST_BYTES", room)
    net, x = fused(), maps(1, 3, 65, 40)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    sets = [[(torch.randn_like(m.bias), torch.rand_like(m.bias)) for m in norms] for _ in range(3)]

    def use(statistics: list[tuple[Tensor, Tensor]]) -> None:
        for norm, (mean, var) in zip(norms, statistics, strict=True):
            norm.running_mean, norm.running_var = mean, var

    expected = []
    for statistics in sets:
        use(statistics)
        expected.append(net(x))
    assert not same(expected[0], expected[1])
    digests.clear()
    with weights_stay(net):
        for _ in range(3):
            for statistics, y in zip(sets, expected, strict=True):
                use(statistics)
                assert same(net(x), y)
    once = len(sets) * (TINY.num_layers + 2)
    low, high = {None: (once, once), 0: (3 * once, 3 * once)}.get(room, (once + 1, 3 * once - 1))
    assert low <= sum(digests) <= high
