"""Chains with skipped, wider and foreign blocks: through the operators as through the modules."""

from __future__ import annotations

import copy
import random
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from detnas_d2 import ops
from detnas_d2.evaluation.recalibration import BatchCollector
from detnas_d2.layers import folded_norm, fused_blocks, get_norm
from detnas_d2.layers.batch_norm_mode import use_batch_statistics
from detnas_d2.modeling import Supernet
from detnas_d2.modeling.prefix_walk import PrefixWalk
from detnas_d2.ops.autotune import AutotuneCache
from detnas_d2.search_space import SearchSpace

SPACE = SearchSpace(
    "elastic",
    8,
    (24, 48, 96),
    (3, 3, 3),
    64,
    ops=(
        ("3x3", "3x3_e2", "xception_e2", "skip"),
        ("5x5", "7x7_e3", "ir_k3_e3_d1", "skip"),
        ("xception", "5x5_e6", "sep_k5_d2", "skip"),
    ),
)
PATHS = (
    # A feature is wanted after a skipped block; skipped blocks follow each other and end the chain.
    "3x3_e2 skip xception_e2 / 5x5 7x7_e3 skip / 5x5_e6 skip skip",
    "xception_e2 skip skip / 7x7_e3 skip 5x5 / xception skip 5x5_e6",
    # Blocks that are no shuffle blocks: at stride 2 and 1, before and after skipped ones.
    "3x3 skip 3x3_e2 / ir_k3_e3_d1 ir_k3_e3_d1 skip / sep_k5_d2 skip xception",
    "3x3 3x3 skip / 5x5 skip ir_k3_e3_d1 / 5x5_e6 skip sep_k5_d2",
)
FEATURES = ["stage1", "stage2", "stage3"]


def pair(method: int) -> tuple[Supernet, Supernet]:
    """A supernet through the operators, and a copy through its modules; float64."""
    torch.manual_seed(method)
    net = Supernet(
        SPACE,
        norm=partial(get_norm, "BN"),
        shuffle_method=method,
        out_features=[*FEATURES, "last"],
        last_conv=True,
        init="default",
    ).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    reference = copy.deepcopy(net)
    net.fused_ops, reference.fused_ops = "on", "off"
    return net, reference


def run(net: Supernet, path: str, x: Tensor) -> dict[str, Tensor]:
    with net.active(SPACE.path(path)):
        return net(x)


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the operators that ran whole blocks or made halves of a block's input."""
    names: list[str] = []
    for name in ("shuffle_block", "shuffle_concat"):
        original = getattr(ops, name)

        def wrapper(*args, _name=name, _original=original, **options):
            names.append(_name)
            return _original(*args, **options)

        monkeypatch.setattr(ops, name, wrapper)

    def shuffle_blocks(x: Tensor, blocks: list, ends: list[int]) -> list[Tensor]:
        names.extend(["shuffle_block"] * len(blocks))
        return several(x, blocks, ends)

    several = folded_norm.shuffle_blocks
    monkeypatch.setattr(folded_norm, "shuffle_blocks", shuffle_blocks)

    def shuffle_blocks_stats(*args) -> tuple:
        names.extend(["shuffle_block_stats"] * len(args[4]))
        return with_stats(*args)

    with_stats = fused_blocks.shuffle_blocks_stats
    monkeypatch.setattr(fused_blocks, "shuffle_blocks_stats", shuffle_blocks_stats)
    return names


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", [1, 2])
def test_training_agrees(path: str, method: int, operators: list[str]) -> None:
    fused, reference = pair(method)
    x = torch.rand(2, 3, 65, 94, dtype=torch.float64)
    a, b = run(fused, path, x), run(reference, path, x)
    assert list(a) == list(b) and operators
    torch.testing.assert_close(a, b)
    grads = [torch.randn_like(value) for value in b.values()]
    for outputs in (a, b):
        torch.autograd.backward(list(outputs.values()), grads)
    for (name, p), q in zip(fused.named_parameters(), reference.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, msg=name)
    for (name, p), q in zip(fused.named_buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(p, q, msg=name)


@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_recalibration_and_evaluation_agree(path: str, operators: list[str]) -> None:
    fused, reference = pair(2)
    x = torch.rand(2, 3, 66, 48, dtype=torch.float64)
    shuffles = sum(op[0].isdigit() or op[0] == "x" for op in SPACE.path(path).ops)
    for net in (fused.eval(), reference.eval()):
        torch.testing.assert_close(run(net, path, x), run(reference, path, x))
    assert operators.count("shuffle_block") == shuffles
    moments = []
    for net in (fused, reference):
        collector = BatchCollector()
        with use_batch_statistics(net, collector.add):
            run(net, path, x)
        collector.end_batch()
        moments.append(collector.statistics.moments)
    assert operators.count("shuffle_block_stats") == shuffles
    assert moments[0].keys() == moments[1].keys()
    for name, expected in moments[1].items():
        assert moments[0][name].count == expected.count
        torch.testing.assert_close(moments[0][name].mean, expected.mean, msg=name)
        torch.testing.assert_close(moments[0][name].m2, expected.m2, msg=name)


@torch.no_grad()
def test_a_walk_gives_the_bits_of_single_paths() -> None:
    net, _ = pair(1)
    net.eval()
    rng = random.Random(0)
    paths = [SPACE.path(path) for path in PATHS]
    for path in list(paths):  # others that part from them in the last layers
        for layer in (5, 7, 8):
            choices = list(path.choices)
            choices[layer] = rng.randrange(SPACE.cardinalities[layer])
            paths.append(SPACE.path(choices))
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    alone = {path: run(net, str(path), x) for path in paths}
    walk = PrefixWalk(paths)
    net.walk = walk
    for path in walk.paths:
        for name, value in run(net, str(path), x).items():
            assert torch.equal(value, alone[path][name]), (str(path), name)


@torch.no_grad()
def test_measured_choices_tell_expansions_apart() -> None:
    class Recorder(AutotuneCache):
        def use_ops(self, key, candidates) -> bool:
            keys.append(key)
            trial = candidates()
            assert trial.check().agrees
            torch.testing.assert_close(trial.operators(), trial.modules())
            return len(keys) % 2 == 0

    keys: list[str] = []
    net, reference = pair(1)
    net.fused_ops, net.autotune = "measured", Recorder()
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    for path in PATHS[1:3]:
        keys.clear()
        torch.testing.assert_close(run(net.eval(), path, x), run(reference.eval(), path, x))
        if path == PATHS[1]:
            assert [key.split()[1] for key in keys] == [
                *("xception_e2", "7x7_e3", "5x5", "xception", "5x5_e6")
            ]
        else:  # after the inverted residuals of stride 2 and 1: a sixteenth of the image's side
            assert "xception stride 1, 96 channels, 16 pixels" in keys[-1]
