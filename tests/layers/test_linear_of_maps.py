from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from detnas_d2 import ops
from detnas_d2.layers.linear_of_maps import LEAST_REGIONS, KeptMaps, LinearOfMaps, use_maps


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    found: list[tuple] = []
    right = ops.pointwise_conv

    def recorded(*args: object, **options: object) -> object:
        found.append(args)
        return right(*args, **options)

    monkeypatch.setattr(ops, "pointwise_conv", recorded)
    return found


def pair(bias: bool = True) -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(5 * 6 * 7, 33, bias=bias), nn.ReLU())
    own = copy.deepcopy(net)
    use_maps(own)
    assert type(own[0]) is KeptMaps and type(own[1]) is LinearOfMaps
    assert list(own.state_dict()) == list(net.state_dict())
    return net, own


def regions(count: int = LEAST_REGIONS) -> Tensor:
    return torch.randn(count, 5, 6, 7).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bias", [False, True])
def test_agrees_with_the_modules_and_follows_the_weights(bias: bool, calls: list) -> None:
    net, own = pair(bias)
    x = regions()
    with torch.no_grad():
        torch.testing.assert_close(own(x), net(x), rtol=1e-5, atol=1e-5)
        again = copy.deepcopy(own)
        assert "_kept" in own[1].__dict__ and "_kept" not in again[1].__dict__
        assert torch.equal(again(x), own(x))
        for each in (net, own):
            each[1].weight.data[3, 40:90] += 1
        torch.testing.assert_close(own(x), net(x), rtol=1e-5, atol=1e-5)
    assert len(calls) == 4
    weights = [args[1] for args in calls]
    assert weights[0] is weights[2] and weights[3] is not weights[2]


def test_flattens_everything_else(calls: list) -> None:
    net, own = pair()

    def same(x: Tensor) -> None:
        assert torch.equal(own(x), net(x))

    same(regions())  # gradients are recorded
    with torch.no_grad():
        same(regions(LEAST_REGIONS - 1))
        same(regions().contiguous())
        same(torch.randn(3, 5, 42))
        with torch.autocast("cpu", torch.bfloat16):
            same(regions())
        seen: list = []
        handle = own[1].register_forward_hook(lambda _, inputs, y: seen.append(inputs[0].dim()))
        same(regions())
        handle.remove()
        assert seen == [2]
        traced = torch.jit.trace(own, regions(), check_trace=False)
        assert torch.equal(traced(x := regions(300)), net(x))
        net.double()
        own.double()
        same(regions().double())
    assert not calls


@torch.no_grad()
def test_a_layer_in_the_place_of_the_linear_one_gets_flat_regions(calls: list) -> None:
    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.added = base, nn.Linear(base.in_features, base.out_features)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.added(x)

    net, own = pair()
    own[1] = net[1] = Adapted(own[1])
    torch.testing.assert_close(own(x := regions()), net(x))
    other = pickle.loads(pickle.dumps(pair()[1]))
    assert other[0]._following[0] is other
    assert not calls


def test_pytorchs_own_again() -> None:
    net, own = pair()
    use_maps(own, fused=False)
    assert [type(module) for module in own] == [type(module) for module in net]
    with torch.no_grad():
        assert torch.equal(own(x := regions()), net(x))


def test_other_modules_stay() -> None:
    class Special(nn.Linear):
        pass

    for flatten, linear in (
        (nn.Flatten(), Special(4, 4)),
        (nn.Flatten(2), nn.Linear(4, 4)),
        (nn.Identity(), nn.Linear(4, 4)),
    ):
        kinds = type(flatten), type(linear)
        use_maps(nn.Sequential(flatten, linear))
        assert (type(flatten), type(linear)) == kinds
