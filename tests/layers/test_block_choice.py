"""FUSED_OPS auto: each block through the operators or its modules; the results do not change."""

from __future__ import annotations

import copy
import random
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from detnas_d2.evaluation.recalibration import BatchCollector
from detnas_d2.layers import get_norm
from detnas_d2.layers.batch_norm_mode import use_batch_statistics
from detnas_d2.modeling import DecodedBackbone
from detnas_d2.ops.autotune import AutotuneCache
from detnas_d2.search_space import SPACES

TINY = SPACES["detnas_tiny"]


class Scripted(AutotuneCache):
    """Chooses by number instead of by time, but runs what it would have measured."""

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self.pattern, self.keys = pattern, []

    def use_ops(self, key, candidates) -> bool:
        for function in candidates():
            function()
        self.keys.append(key)
        return self.pattern[(len(self.keys) - 1) % len(self.pattern)] == "o"


def nets(pattern: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    net = DecodedBackbone(
        TINY.random_path(random.Random(3)),
        norm=partial(get_norm, "BN"),
        shuffle_method=1,
        out_features=["stage2", "stage4"],
        init="default",
    )
    reference = copy.deepcopy(net)
    net.fused_ops, reference.fused_ops = "auto", "off"
    net.autotune = Scripted(pattern)
    return net.double(), reference.double()


@pytest.mark.parametrize("pattern", ["o", "m", "om", "mmo"])
def test_mixtures_agree(pattern: str) -> None:
    net, reference = nets(pattern)
    x = torch.rand(2, 3, 64, 48, dtype=torch.float64)
    state = torch.get_rng_state()
    a, b = net(x), reference(x)
    for name in b:
        torch.testing.assert_close(a[name], b[name])
        (a[name].sum() + b[name].sum()).backward(retain_graph=True)
    for p, q in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    for p, q in zip(net.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(p, q)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x), reference.eval()(x))
        collected = []
        for each in (net, reference):
            collector = BatchCollector()
            with use_batch_statistics(each, collector.add):
                each(x)
            collector.end_batch()
            collected.append(collector.statistics.moments)
    assert torch.equal(torch.get_rng_state(), state)
    for name in collected[1]:
        assert collected[0][name].count == collected[1][name].count
        torch.testing.assert_close(collected[0][name].mean, collected[1][name].mean)
    modes = [key.split()[0] for key in net.autotune.keys]
    assert modes == [m for m in ("training", "evaluation", "statistics") for _ in net.blocks]


def test_measured_choices_reach_the_file_and_the_resumed_run(tmp_path: Path) -> None:
    net, _ = nets("o")
    path = tmp_path / "fused_ops.json"
    net.autotune = AutotuneCache(path)
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    first = net(x)["stage4"]
    kept = path.read_text()
    resumed, _ = nets("o")
    resumed.autotune = AutotuneCache(path)
    assert torch.equal(resumed(x)["stage4"], first)
    assert path.read_text() == kept
