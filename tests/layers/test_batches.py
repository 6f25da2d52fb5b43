"""Several batches through a backbone at once: outputs and statistics of one by one, to the bit."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from detnas_d2.layers import get_norm
from detnas_d2.layers.batch_norm_mode import use_batch_statistics
from detnas_d2.modeling import PrefixWalk, Supernet
from detnas_d2.ops import BNStats
from detnas_d2.ops.autotune import AutotuneCache
from detnas_d2.search_space import SHUFFLE_OPS, SearchSpace
from tests.layers.fused_backbones import FEATURES, TINY

SKIPS = SearchSpace("skips", 4, (8, 16), (3, 2), 8, ops=(*SHUFFLE_OPS, "skip"))


class Alternating(AutotuneCache):
    """Every other kind of block runs by its modules."""

    def use_ops(self, key, trial) -> bool:
        self.entries.setdefault(key, {"use": ("ops", "modules")[len(self.entries) % 2]})
        return self.entries[key]["use"] == "ops"


def supernet(space: SearchSpace, fused: str) -> Supernet:
    torch.manual_seed(0)
    features = FEATURES[: len(space.stage_channels)]
    net = Supernet(
        space,
        norm=partial(get_norm, "BN"),
        shuffle_method=2,
        out_features=[*features, "last"],
        last_conv=True,
        init="default",
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    net.fused_ops = fused
    if fused == "measured":
        net.autotune = Alternating()
    return net.eval()


Seen = dict[str, list[BNStats]]


@torch.no_grad()
def walked(net: Supernet, paths: list, images: Tensor, batches: int) -> tuple[list[dict], Seen]:
    """Features of every path, and what its BatchNorms saw."""
    seen: Seen = {}
    walk = PrefixWalk(paths)
    walk.clear(batches)
    net.walk = walk
    outputs = []

    def report(name: str, stats: BNStats) -> None:
        seen.setdefault(f"{path}: {name}", []).append(stats)

    with use_batch_statistics(net, report):
        for path in walk.paths:
            with net.active(path):
                outputs.append(net(images))
    net.walk = None
    return outputs, seen


@pytest.mark.parametrize("space", [TINY, SKIPS], ids=lambda space: space.name)
@pytest.mark.parametrize("fused", ["on", "off", "measured"])
@pytest.mark.parametrize(("size", "images"), [((64, 96), 2), ((33, 47), 1)])
def test_to_the_bit(space: SearchSpace, fused: str, size: tuple, images: int) -> None:
    net, rng, batches = supernet(space, fused), random.Random(1), 3
    paths = [space.random_path(rng) for _ in range(3)]
    x = torch.rand(batches * images, 3, *size)
    together, seen = walked(net, paths, x, batches)
    alone = [walked(net, paths, one, 1) for one in x.chunk(batches)]
    for i, found in enumerate(together):
        for name, y in found.items():
            assert torch.equal(y, torch.cat([outputs[i][name] for outputs, _ in alone])), name
    assert all(one.keys() == seen.keys() for _, one in alone)
    for name, reports in seen.items():
        assert len(reports) == batches
        for found, expected in zip(reports, (one[name][0] for _, one in alone), strict=True):
            assert all(map(torch.equal, found, expected)), name


def test_running_statistics_follow_one_batch_after_the_other() -> None:
    ours, theirs = (supernet(TINY, "on").train() for _ in range(2))
    path, x = TINY.random_path(random.Random(2)), torch.rand(6, 3, 64, 64)
    with torch.no_grad(), ours.active(path), theirs.active(path):
        ours.walk = PrefixWalk([path])
        ours.walk.clear(3)
        ours(x)
        for one in x.chunk(3):
            theirs(one)
    for (name, a), b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert ours.stem.norm.num_batches_tracked == 3
