"""The fused operators in whole backbones: the same as the modules, but for rounding."""

from __future__ import annotations

import copy
import random
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.utils import parametrize

from detnas_d2.engine import PathTrainer
from detnas_d2.evaluation.recalibration import BatchCollector
from detnas_d2.layers import fused_blocks, get_norm
from detnas_d2.layers.batch_norm_mode import use_batch_statistics
from detnas_d2.layers.shuffle_block import ShuffleBlock
from detnas_d2.modeling import Supernet
from tests.layers.fused_backbones import TINY, assert_close, backbone, pair


@pytest.mark.parametrize("method", [1, 2])
@pytest.mark.parametrize("size", [(64, 96), (33, 47)])
def test_training_agrees(method: int, size: tuple[int, int], used: list[str]) -> None:
    fused, reference = pair(backbone(method, seed=method, last=True))
    x = torch.rand(2, 3, *size)
    a, b = fused(x), reference(x)
    assert used == ["run_blocks"]
    assert list(a) == list(b)
    exact = copy.deepcopy(reference).double()
    c = exact(x.double())
    torch.manual_seed(0)
    grads = [torch.randn(v.shape) for v in b.values()]
    for outputs in (a, b, c):
        values = list(outputs.values())
        torch.autograd.backward(values, [g.to(v.dtype) for g, v in zip(grads, values, strict=True)])
    for name in b:
        assert_close(a[name], c[name], 1e-4, name)
    for (name, p), q, r in zip(
        fused.named_parameters(), exact.parameters(), reference.parameters(), strict=True
    ):
        # A bias before a BatchNorm has no gradient but rounding.
        if name in ("stem.conv.bias", "last.conv.bias"):
            continue
        modules_error = (r.grad - q.grad).abs().max()
        error = (p.grad - q.grad).abs().max()
        assert error <= 1e-3 * q.grad.abs().max() + 8 * modules_error, name
    for (name, p), q in zip(fused.named_buffers(), reference.buffers(), strict=True):
        assert_close(p, q, 1e-4, name)


def test_modules_run_themselves_where_the_operators_do_not_apply(used: list[str]) -> None:
    x = torch.rand(1, 3, 64, 64)
    for net in (backbone(norm="GN"), backbone(norm="FrozenBN")):
        net.fused_ops = "on"
        net(x)
    foreign = backbone()  # a BatchNorm of another kind may compute anything
    foreign.blocks[0].main[0].norm = NaiveSyncBatchNorm(foreign.blocks[0].main[0].conv.out_channels)
    foreign(x)
    hooked = backbone()
    seen: list[nn.Module] = []
    hooked.blocks[0].main[0].conv.register_forward_hook(lambda m, i, o: seen.append(m))
    hooked(x)
    assert len(seen) == 1
    backbone().eval()(x)  # gradients are recorded: folding would cut them off
    off = backbone()
    off.fused_ops = "off"
    off(x)
    assert used == []


def test_hooks_run_wherever_they_are() -> None:
    x = torch.rand(1, 3, 64, 64)
    net = backbone()
    net.fused_ops = "on"
    block = next(b for b in net.blocks if isinstance(b, ShuffleBlock) and b.projection is not None)
    seen: list[nn.Module] = []
    for module in (block.main, block.projection):
        module.register_forward_hook(lambda m, *_: seen.append(m))
    net(x)
    assert set(seen) == {block.main, block.projection}
    net, seen = backbone(), []
    net.blocks[0].register_full_backward_pre_hook(lambda m, _: seen.append(m))
    net(x)["stage4"].sum().backward()
    assert seen == [net.blocks[0]]
    torch.manual_seed(0)
    supernet = Supernet(TINY, norm=nn.BatchNorm2d, shuffle_method=2, out_features=["stage4"])
    seen = []
    supernet.blocks[1].register_forward_hook(lambda m, *_: seen.append(m))
    with supernet.active(TINY.random_path(random.Random(0))):
        supernet(x)
    assert seen == [supernet.blocks[1]]


class _Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input) + 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", ["parametrization", "subclass", "own forward"])
@torch.no_grad()
def test_changed_convolutions_are_followed(change: str, training: bool, used: list[str]) -> None:
    fused, reference = pair(backbone().train(training))
    for net in (fused, reference):
        conv = net.blocks[0].main[0].conv
        if change == "parametrization":
            parametrize.register_parametrization(conv, "weight", nn.Tanh())
        elif change == "subclass":
            conv.__class__ = _Doubled
        else:
            conv.forward = lambda x, conv=conv: 2 * nn.Conv2d.forward(conv, x) + 1
    x = torch.rand(2, 3, 64, 64)
    for name, expected in reference(x).items():
        assert_close(fused(x)[name], expected, 1e-4, name)
    assert used == []


def replica(module: nn.Module) -> nn.Module:
    """As DataParallel makes them: tensors are attributes, not parameters."""
    made = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        made._modules[name] = None if child is None else replica(child)
    for name, parameter in module._parameters.items():
        if parameter is None:
            made._parameters[name] = None
        else:
            setattr(made, name, parameter.view_as(parameter))
    return made


@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_replicas_run_their_modules(training: bool, used: list[str]) -> None:
    net, x = backbone().train(training), torch.rand(2, 3, 64, 64)
    other = replica(copy.deepcopy(net))
    net.fused_ops, other.fused_ops = "off", "on"
    for name, expected in net(x).items():
        assert torch.equal(other(x)[name], expected), name
    assert used == []


def test_recalibration_agrees(used: list[str]) -> None:
    fused, reference = pair(backbone(2).eval())
    before = copy.deepcopy(fused.state_dict())
    collected = []
    for net in (fused, reference):
        collector = BatchCollector()
        with torch.no_grad(), use_batch_statistics(net, collector.add):
            for seed in (1, 2):
                torch.manual_seed(seed)
                net(torch.rand(2, 3, 64, 48))
                collector.end_batch()
        collected.append(collector.statistics.moments)
    assert used == ["run_blocks"] * 2
    a, b = collected
    assert a.keys() == b.keys()
    for name in b:
        assert a[name].count == b[name].count
        spread = b[name].variance.sqrt() + b[name].mean.abs() + 1e-6
        assert ((a[name].mean - b[name].mean).abs() / spread).max() < 1e-4, name
        assert_close(a[name].m2, b[name].m2, 1e-3, name)
    for name, value in fused.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("method", [1, 2])
def test_without_gradients_all_blocks_are_one_operator(method: int, monkeypatch) -> None:
    fused, reference = pair(backbone(method, seed=method))
    calls: list[list[int]] = []
    original = fused_blocks.shuffle_blocks_stats

    def counted(*args) -> tuple:
        calls.append([block.stride for block in args[4]])
        return original(*args)

    monkeypatch.setattr(fused_blocks, "shuffle_blocks_stats", counted)
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        for _ in range(2):
            a, b = fused(x), reference(x)
    assert calls == [[block.stride for block in fused.blocks]] * 2
    for name in b:
        assert_close(a[name], b[name], 1e-4, name)
    for (name, p), q in zip(fused.named_buffers(), reference.buffers(), strict=True):
        assert_close(p, q, 1e-4, name)
    with torch.no_grad(), pytest.raises(ValueError, match="more than 1 value per channel"):
        fused(torch.rand(1, 3, 8, 8))


def test_supernet_runs_its_active_path_and_only_that_gets_gradients(used: list[str]) -> None:
    torch.manual_seed(0)
    net = Supernet(TINY, norm=partial(get_norm, "BN"), shuffle_method=1, out_features=["stage4"])
    path = TINY.random_path(random.Random(1))
    with net.active(path):
        fused, reference = pair(net)
        with reference.active(path):
            a, b = fused(torch.ones(1, 3, 64, 64)), reference(torch.ones(1, 3, 64, 64))
    assert used == ["run_blocks"]
    a["stage4"].sum().backward()
    b["stage4"].sum().backward()
    for p, q in zip(fused.parameters(), reference.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)


class _Classifier(nn.Module):
    """A supernet with a linear head, as trainers want it: a batch in, a dict of losses out."""

    def __init__(self, mode: str, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = Supernet(
            TINY,
            norm=partial(get_norm, "BN"),
            shuffle_method=2,
            out_features=["stage4"],
            init="default",
        )
        self.head = nn.Linear(TINY.stage_channels[-1], 2)
        self.backbone.fused_ops = mode
        self.to(dtype)

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = batch
        features = self.backbone(images.to(self.head.weight.dtype))["stage4"]
        return {"loss": F.cross_entropy(self.head(features.mean((2, 3))), labels)}


def _training_curve(mode: str, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Losses of 50 steps of the trainer of supernets, a random path in each, weight decay on."""
    model = _Classifier(mode, dtype, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-3, momentum=0.9, weight_decay=4e-5)
    trainer = PathTrainer(
        model, optimizer, path_sampler=lambda i: (TINY.random_path(random.Random(i)),), seed=0
    )
    labels = torch.tensor([0, 1, 0, 1]).expand(50, 4)
    images = 0.5 * torch.rand(50, 4, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    images[:, :, 0] += labels.view(50, 4, 1, 1)
    trainer.set_data(zip(images, labels, strict=True))
    losses = []
    with EventStorage(0) as storage:
        for trainer.iter in range(50):
            trainer.run_step()
            losses.append(storage.latest()["total_loss"][0])
            storage.step()
    return torch.tensor(losses, dtype=torch.float64)


def test_training_curves_of_50_steps_are_indistinguishable(used: list[str]) -> None:
    exact = _training_curve("off", torch.float64)
    assert exact[-25:].mean() < exact[:25].mean()
    # In float64 rounding has no time to grow: a wrong gradient or statistic would show.
    torch.testing.assert_close(_training_curve("on", torch.float64), exact, rtol=1e-7, atol=1e-8)
    # In float32 it grows, as between any two machines, but stays below what a seed changes.
    off, on = (_training_curve(mode, torch.float32) for mode in ("off", "on"))
    assert used == ["run_blocks"] * 100
    torch.testing.assert_close(on[:3], exact[:3], rtol=1e-4, atol=1e-4)
    other = _training_curve("on", torch.float32, seed=1)
    assert (on - off).abs().mean() < (other - off).abs().mean()


def _worker(rank: int, init: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{init}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    fused, reference = pair(backbone(2, norm="SyncBN"))
    torch.manual_seed(rank)
    x = torch.rand(1 + rank, 3, 48, 32)  # ranks hold different numbers of images
    for net in (fused, reference):
        net(x)["stage4"].square().sum().backward()
    pairs = zip(fused.named_parameters(), reference.parameters(), strict=True)
    grads = {n: (p.grad, q.grad) for (n, p), q in pairs if n != "stem.conv.bias"}
    buffers = list(zip(fused.buffers(), reference.buffers(), strict=True))
    torch.save({"grads": grads, "buffers": buffers}, f"{results}.{rank}")
    dist.destroy_process_group()


def test_sync_batch_norm_over_two_ranks(tmp_path) -> None:
    mp.spawn(_worker, (str(tmp_path / "init"), str(tmp_path / "results")), nprocs=2)
    for rank in range(2):
        saved = torch.load(tmp_path / f"results.{rank}", weights_only=True)
        for name, (a, b) in saved["grads"].items():
            assert_close(a, b, 2e-3, name)
        for a, b in saved["buffers"]:
            assert_close(a, b, 1e-4, "buffer")
