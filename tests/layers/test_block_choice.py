"""FUSED_OPS measured, and auto on a GPU: each block through the operators or its modules, tried out
before; the results do not change.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from detnas_d2 import ops
from detnas_d2.evaluation.recalibration import BatchCollector
from detnas_d2.layers import fused_blocks, fused_shuffle, get_norm
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
        trial = candidates()
        assert trial.check().agrees
        trial.operators()
        trial.modules()
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
    net.fused_ops, reference.fused_ops = "measured", "off"
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


def wrong_training(*args: object) -> tuple[object, object]:
    def off(y: torch.Tensor) -> torch.Tensor:
        return torch.cat([y[:, :, :-1], 0.5 * y[:, :, -1:]], dim=2)  # a tail

    out, stats = RIGHT["shuffle_block_training"](*args)
    return (tuple(map(off, out)) if isinstance(out, tuple) else off(out)), stats


def wrong_block(*args: object) -> tuple[object, object]:
    out, stats = RIGHT["shuffle_blocks_stats"](*args)
    return out, [s._replace(mean=s.mean + 0.5 * s.m2.sqrt()) for s in stats]


def failing_block(*args: object) -> None:
    raise RuntimeError("no kernel image is available for execution on the device\nand so on")


OF = {"shuffle_block_training": ops, "shuffle_blocks_stats": fused_blocks}
RIGHT = {name: getattr(module, name) for name, module in OF.items()}


@pytest.mark.parametrize(
    ("op", "wrong", "mode", "why"),
    [
        (
            "shuffle_block_training",
            wrong_training,
            "training",
            "operators are wrong: relative error",
        ),
        ("shuffle_blocks_stats", wrong_block, "statistics", "of .*running_mean, expected at most"),
        ("shuffle_blocks_stats", failing_block, "statistics", "failed: no kernel image .* device"),
    ],
)
def test_wrong_operators_are_not_used_and_named(
    op: str,
    wrong: Callable,
    mode: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    net, reference = nets("o")
    net, reference = net.float(), reference.float()
    net.autotune = AutotuneCache()
    monkeypatch.setattr(OF[op], op, wrong)
    x = torch.randn(2, 3, 64, 64)
    with torch.set_grad_enabled(mode == "training"):
        found, expected = net(x), reference(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    entries = net.autotune.entries
    assert entries and {entry["use"] for entry in entries.values()} == {"modules"}
    for key, entry in entries.items():
        assert key.startswith(mode)
        assert re.search(why, entry["why"])
        line = f"FUSED_OPS: {key}: {entry['why']}"
        assert sum(line in message for message in caplog.messages) == 1
    warnings = len(caplog.messages)
    net(x) if mode == "training" else torch.no_grad()(net)(x)
    assert len(caplog.messages) == warnings  # each once


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["training", "statistics", "evaluation"])
def test_right_operators_pass_in_every_precision(dtype: torch.dtype, mode: str) -> None:
    verdicts = []

    class Checking(AutotuneCache):
        def use_ops(self, key, candidates) -> bool:
            verdicts.append((key, candidates().check()))
            return True

    net, _ = nets("o")
    net = net.to(dtype).train(mode != "evaluation")
    net.autotune = Checking()
    with torch.set_grad_enabled(mode == "training"):
        net(torch.randn(2, 3, 96, 64, dtype=dtype))
    assert len(verdicts) == len(net.blocks)
    for key, verdict in verdicts:
        assert verdict.agrees, (key, verdict)


def test_processes_that_cannot_agree_run_the_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, reference = nets("o")
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    monkeypatch.setattr(fused_shuffle, "several_processes", lambda: True)
    net.autotune = AutotuneCache()  # in the memory of each
    assert torch.equal(net(x)["stage4"], reference(x)["stage4"]) and not net.autotune.entries
    net.autotune = AutotuneCache(tmp_path / "fused_ops.json")
    monkeypatch.setattr(fused_shuffle, "on_one_machine", lambda: False)
    assert torch.equal(net(x)["stage4"], reference(x)["stage4"]) and not net.autotune.entries
    monkeypatch.setattr(fused_shuffle, "on_one_machine", lambda: True)
    net(x)
    assert net.autotune.entries


def test_statistics_of_several_processes_are_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their operators leave statistics to be merged, and are others than those that are tried."""
    net, reference = nets("o")
    net.autotune = AutotuneCache()
    monkeypatch.setattr(fused_shuffle, "over_ranks", lambda norm: True)
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    assert torch.equal(net(x)["stage4"], reference(x)["stage4"]) and not net.autotune.entries
    with torch.no_grad():
        net.eval()(x)
    assert all(key.startswith("evaluation") for key in net.autotune.entries)
    assert len(net.autotune.entries) > 0


def test_copies_keep_what_was_found() -> None:
    net, _ = nets("o")
    net.autotune = AutotuneCache()
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    net(x)
    copied = copy.deepcopy(net)
    assert copied.autotune.entries == net.autotune.entries and not copied.autotune.known
    assert torch.equal(copied(x)["stage4"], net(x)["stage4"])


def test_auto_tries_nothing_on_a_cpu() -> None:
    net, _ = nets("o")
    net.fused_ops, net.autotune = "auto", AutotuneCache()
    on = copy.deepcopy(net)
    on.fused_ops = "on"
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    assert torch.equal(net(x)["stage4"], on(x)["stage4"]) and not net.autotune.entries


def test_blocks_are_tried_out_inside_of_a_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    net, reference = nets("o")
    net.autotune = AutotuneCache()
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    out = checkpoint(lambda images: net(images)["stage4"], x, use_reentrant=False)
    out.square().sum().backward()
    reference(x)["stage4"].square().sum().backward()
    assert net.autotune.entries and not caplog.messages
    for own, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-6, atol=1e-6)
