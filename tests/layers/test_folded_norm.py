"""Evaluation through operators with BatchNorms folded in: what is kept, and when it is dropped."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from detnas_d2 import ops
from detnas_d2.layers.folded_norm import eval_block, eval_layer, folded, kernel_of
from tests.layers.fused_backbones import TINY, assert_close, backbone, pair


def test_evaluation_agrees_and_follows_changes(used: list[str]) -> None:
    fused, reference = pair(backbone(1, last=True).eval())
    x = torch.rand(1, 3, 65, 40)
    with torch.no_grad():
        for change in (lambda net: None, lambda net: net.blocks[1].main[0].norm.bias.add_(1)):
            change(fused)
            change(reference)
            a, b = fused(x), reference(x)
            for name in b:
                assert_close(a[name], b[name], 1e-5, name)
    assert used == ["eval_blocks"] * 2


@torch.no_grad()
def _average_into(net: torch.nn.Module) -> None:
    for p in net.parameters():
        p.data.copy_(p.data * 0.9 + 0.01)


def _one_value(net: torch.nn.Module) -> None:
    net.get_parameter("stem.conv.weight").data[0, 1, 1, 1] += 5


def _taps(net: torch.nn.Module) -> None:
    net.get_parameter("blocks.0.main.0.conv.weight").data[:, 0, 1, 1] += 1


def _statistics(net: torch.nn.Module) -> None:
    net.get_buffer("blocks.0.main.1.norm.running_var").data.mul_(3)


def _assigned(net: torch.nn.Module) -> None:
    p = net.get_parameter("blocks.1.main.0.conv.weight")
    p.data = p.data.flip(0)


def _swapped(net: torch.nn.Module) -> None:
    p = net.get_parameter("blocks.2.main.0.conv.weight")
    torch.utils.swap_tensors(p, torch.nn.Parameter(p.detach().flip(0)))


def _two_signs(net: torch.nn.Module) -> None:
    w = net.get_parameter("blocks.1.main.0.conv.weight").data.view(-1)
    w[1] *= -1
    w[3] *= -1


def _epsilon(net: torch.nn.Module) -> None:
    net.blocks[1].main[0].norm.eps = 0.5


@pytest.mark.parametrize(
    "change",
    [_average_into, _one_value, _taps, _statistics, _assigned, _swapped, _two_signs, _epsilon],
)
@pytest.mark.parametrize("again", ["", "eval", "train", "load", "to"])
def test_evaluation_follows_writes_that_no_version_counts(
    change: Callable, again: str, used: list[str]
) -> None:
    fused, reference = pair(backbone(1).eval())
    x = torch.rand(1, 3, 33, 40)
    with torch.no_grad():
        before = fused(x)
        for net in (fused, reference):
            change(net)
        if again == "load":
            fused.load_state_dict(reference.state_dict())
        elif again == "to":
            fused.to(torch.float32)
        elif again:
            fused.train(again == "train").eval()
        a, b = fused(x), reference(x)
        assert any(not torch.equal(a[name], before[name]) for name in a)
        for name in b:
            assert_close(a[name], b[name], 1e-4, name)
    assert set(used) == {"eval_blocks"}


def test_folded_weights_are_dropped_by_what_modules_know_of() -> None:
    net = backbone(1).eval()
    net.fused_ops = "on"

    def kept() -> int:
        return sum("_folded" in m.__dict__ for m in net.modules())

    for drop in (
        lambda: net.train(),
        lambda: net.eval(),
        lambda: net.load_state_dict(net.state_dict()),
        lambda: net.to(torch.float32),
        lambda: net.requires_grad_(False).float(),
    ):
        net.eval()
        with torch.no_grad():
            net(torch.rand(1, 3, 33, 40))
        assert kept() == TINY.num_layers + 1  # the blocks and the stem
        drop()
        assert kept() == 0


@torch.no_grad()
def test_copies_and_pickles_have_no_folded_weights() -> None:
    net, x = backbone().eval(), torch.rand(1, 3, 64, 64)
    net.fused_ops = "on"
    expected = net(x)["stage4"]
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert not any("_folded" in module.__dict__ for module in other.modules())
        assert torch.equal(other(x)["stage4"], expected)
    assert any("_folded" in module.__dict__ for module in net.modules())


@torch.no_grad()
def test_copies_of_folded_weights_for_autocast_are_kept_until_the_weights_change() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        net = backbone(1).eval()
        layer, block = net.stem, net.blocks[0]
        images = torch.rand(1, 3, 33, 29).contiguous(memory_format=torch.channels_last)
        for module, x in ((layer, images), (block, layer(images))):
            run = eval_block if module is block else eval_layer
            for change in (lambda w: w, lambda w: w.mul_(1.5), lambda w: w.data.mul_(0.5)):
                change(next(module.parameters()))
                with torch.autocast("cpu", dtype):
                    kept = folded(module)
                    first = kept.under_autocast(x)
                    if module is block:  # cast by the operator
                        args = (kept.weights, kept.biases, kernel_of(block), block.stride, 1)
                        expected = ops.shuffle_block(x, *args)
                    else:  # by autocast
                        (w,), (b,) = kept.weights, kept.biases
                        expected = F.relu(F.conv2d(x, w, b, layer.conv.stride, layer.conv.padding))
                    y = run(module, x)
                    again = folded(module).under_autocast(x)
                assert y.dtype == dtype and torch.equal(y, expected)
                assert again is first and {t.dtype for t in first.weights} == {dtype}
                assert kept.under_autocast(x) is kept  # outside
            assert module.__dict__.pop("_folded")[1] is kept


def test_networks_made_in_inference_mode(used: list[str]) -> None:
    """Their tensors count no changes; the values tell."""
    with torch.inference_mode():
        fused, modules = pair(backbone().eval())
        x = torch.randn(1, 3, 65, 70)
        for training in (False, True, False):
            a, b = fused.train(training)(x), modules.train(training)(x)
            for name in b:
                assert_close(a[name], b[name], 1e-4, name)
            for net in (fused, modules):
                net.get_parameter("stem.conv.weight").mul_(2)
    assert set(used) == {"eval_blocks", "run_blocks"}
