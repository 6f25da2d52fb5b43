"""MODEL.HIT.FUSED_OPS measured, and auto on a GPU: each candidate of a mixture through the
operators or its modules, tried out before; the results do not change."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

from detnas_d2 import ops
from detnas_d2.layers import mixture_choice
from detnas_d2.layers.batch_norm_mode import frozen_statistics
from detnas_d2.modeling import mixed_block
from detnas_d2.modeling.mixed_block import MixedBlock
from detnas_d2.ops.autotune import AutotuneCache
from tests.layers.test_block_choice import Scripted
from tests.layers.test_fused_residual import OPS, pair, step, used  # noqa: F401  (a fixture)
from tests.modeling.hit.test_detector import config

F64 = torch.float64


def tried(
    recompute: bool = True, dtype: torch.dtype = F64, out: int = 8, stride: int = 1
) -> tuple[MixedBlock, MixedBlock, Tensor, Tensor]:
    """A block that tries its candidates out, one of modules, an input and weights."""
    block, reference = pair(out, stride, recompute, dtype)
    block.fused_ops = "measured"
    return block, reference, torch.randn(2, 8, 13, 10, dtype=dtype), torch.rand(5, dtype=dtype)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("pattern", ["o", "m", "om"])
@pytest.mark.parametrize(("out", "stride"), [(8, 1), (12, 2)])
def test_mixtures_agree(
    recompute: bool, pattern: str, out: int, stride: int, used: list  # noqa: F811
) -> None:  # fmt: skip
    block, reference, x, weights = tried(recompute, out=out, stride=stride)
    block.autotune = Scripted(pattern)
    state = torch.get_rng_state()
    for active in ([0, 1, 2, 3, 4], [1, 3]):
        used.clear()
        mine, theirs = (step(b, x, weights, active) for b in (block, reference))
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
        chosen = [pattern[i % len(pattern)] for i in active].count("o")
        assert used == ([chosen, *[1] * chosen] if recompute else [chosen])[: chosen * 2]
    assert torch.equal(torch.get_rng_state(), state)
    for (name, p), q in zip(block.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-10, msg=name)
    for (name, p), q in zip(block.named_buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10, msg=name)
    keys = block.autotune.keys
    assert len(keys) == len(set(keys)) == len(OPS)  # each once
    residual = " with residual" if stride == 1 else ""
    assert keys[1].startswith(
        f"training inverted residual k5 dilation 2 stride {stride}{residual}, "
        f"8 to 24 to {out} channels, 256 pixels, torch.float64"
    )
    assert keys[2].startswith(f"training separable k3 dilation 1 stride {stride}{residual}, 8 to ")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_right_operators_pass_in_every_precision(dtype: torch.dtype) -> None:
    verdicts = []

    class Checking(AutotuneCache):
        def use_ops(self, key: str, trial: Callable) -> bool:
            verdicts.append(trial().check())
            return True

    for stride in (1, 2):
        block, _, x, weights = tried(dtype=dtype, stride=stride)
        block.autotune = Checking()
        block.requires_grad_(False)  # as while the architecture is trained
        with torch.no_grad():
            block(x, weights)
    assert len(verdicts) == 2 * len(OPS)
    assert all(verdict.agrees for verdict in verdicts), verdicts


RIGHT = {name: getattr(ops, name) for name in ("mixed_sum", "mixed_depthwise")}


def wrong_sum(
    y: list, scale: list, shift: list, weights: Tensor, residual: Tensor | None
) -> Tensor:
    """Its last map has the weight of the first, where there are several."""
    mixed = torch.cat([weights[:-1], weights[:1]])
    return RIGHT["mixed_sum"](y, scale, shift, mixed, residual)


def wrong_gradients(x: list, weights: list, *args: object) -> object:
    return RIGHT["mixed_depthwise"](x, [w.detach() + 0 * w for w in weights], *args)


def failing(*args: object) -> None:
    raise RuntimeError("no kernel image is available for execution on the device\nand so on")


@pytest.mark.parametrize(
    ("op", "wrong", "why"),
    [
        ("mixed_sum", wrong_sum, "operators are wrong: relative error .*, expected at most"),
        ("mixed_depthwise", wrong_gradients, "wrong: relative error .* of gradient of .*depthwise"),
        ("mixed_depthwise", failing, "failed: no kernel image .* device"),
    ],
)
def test_wrong_operators_are_not_used_and_named(
    op: str, wrong: Callable, why: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, used: list,  # noqa: F811
) -> None:  # fmt: skip
    block, reference, x, weights = tried(dtype=torch.float32)
    monkeypatch.setattr(ops, op, wrong)
    for _ in range(2):
        mine, theirs = (step(b, x, weights, [0, 1, 2, 3, 4]) for b in (block, reference))
        torch.testing.assert_close(mine, theirs)
    assert used == []
    assert len(block.autotune.entries) == len(caplog.messages) == len(OPS)  # each once
    for key, entry in block.autotune.entries.items():
        assert entry["use"] == "modules"
        assert re.search(why, entry["why"]), entry
        assert any(f"FUSED_OPS: {key}: {entry['why']}" in message for message in caplog.messages)


def test_choices_reach_the_file_and_the_resumed_run(tmp_path: Path) -> None:
    path = tmp_path / "fused_ops.json"
    block, _, x, weights = tried()
    block.autotune = AutotuneCache(path)
    first = block(x, weights)
    kept = path.read_text()
    resumed, *_ = tried()
    resumed.autotune = AutotuneCache(path)
    assert torch.equal(resumed(x, weights), first)
    assert path.read_text() == kept and len(resumed.autotune.entries) == len(OPS)
    resumed(x[:, :, :6], weights)  # another size
    assert len(AutotuneCache(path).entries) == 2 * len(OPS)


def test_a_trial_leaves_the_candidates_alone() -> None:
    block, _, x, weights = tried()
    block.autotune = Scripted("m")
    block(x, weights).sum().backward()
    block.autotune = Scripted("m")
    before = {name: t.clone() for name, t in block.state_dict().items()}
    grads = [p.grad.clone() for p in block.parameters()]
    with frozen_statistics(block), torch.no_grad():
        block(x, weights)
    assert len(block.autotune.keys) == len(OPS)
    torch.testing.assert_close(block.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close([p.grad for p in block.parameters()], grads, rtol=0, atol=0)


def test_what_does_not_fit_is_not_tried() -> None:
    block, _, x, weights = tried()
    block.eval()(x, weights)
    block.train()
    with torch.autocast("cpu", torch.bfloat16):
        block.float()(x.float(), weights.float())
    assert not block.autotune.entries


def test_processes_that_cannot_agree_run_the_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: list  # noqa: F811
) -> None:  # fmt: skip
    block, reference, x, weights = tried()
    monkeypatch.setattr(mixture_choice, "several_processes", lambda: True)
    assert torch.equal(block(x, weights), reference(x, weights))  # choices in memory of each
    block.autotune = AutotuneCache(tmp_path / "fused_ops.json")
    monkeypatch.setattr(mixture_choice, "on_one_machine", lambda: False)
    assert torch.equal(block(x, weights), reference(x, weights))
    monkeypatch.setattr(mixture_choice, "on_one_machine", lambda: True)
    with monkeypatch.context() as merged:
        merged.setattr(mixture_choice, "over_ranks", lambda norm: True)
        assert torch.equal(block(x, weights), reference(x, weights))
    assert used == [] and not block.autotune.entries
    block.autotune = AutotuneCache(tmp_path / "fused_ops.json")
    block(x, weights)
    assert len(block.autotune.entries) == len(OPS)


def test_auto_tries_nothing_on_a_cpu(used: list) -> None:  # noqa: F811
    block, _, x, weights = tried()
    found = {}
    for block.fused_ops in mixed_block.FUSED_OPS[:3]:
        used.clear()
        block(x, weights)
        found[block.fused_ops] = list(used)
    assert found == {"off": [], "cpu": [5], "auto": [5]}
    assert not block.autotune.entries


def test_a_config_keeps_choices_in_its_folder(tmp_path: Path) -> None:
    cfg = config(searched=("backbone", "neck", "head"))
    cfg.OUTPUT_DIR = str(tmp_path)
    assert cfg.MODEL.HIT.FUSED_OPS == "auto"
    model: nn.Module = build_model(cfg)
    blocks = [m for m in model.modules() if isinstance(m, MixedBlock)]
    assert blocks and {b.fused_ops for b in blocks} == {"auto"}
    assert {b.autotune.path for b in blocks} == {tmp_path / "fused_ops.json"}
