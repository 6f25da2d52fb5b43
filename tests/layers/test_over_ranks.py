"""Statistics over two processes: values, gradients, and how often the processes talk."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.autograd import grad

from detnas_d2 import ops
from detnas_d2.layers import get_norm
from detnas_d2.layers.batch_statistics import BatchNorms
from detnas_d2.layers.over_ranks import merge_over_ranks
from tests.layers.fused_backbones import assert_close, backbone

F64 = torch.float64
# Images of both ranks; the mean is large beside the deviation in the last.
COUNTS = ((3, 1), (2, 0), (0, 0), (1, 2))
SHIFTS = (0.0, 1.0, 0.0, 300.0)


def share(case: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(10 * case + rank)
    shape = (COUNTS[case][rank], 5, 3, 4)
    return torch.randn(shape, generator=generator, dtype=F64) + SHIFTS[case] + rank


def objective(stats: ops.BNStats) -> Tensor:
    """Something that both ranks' gradients of both statistics go into."""
    weights = torch.arange(1.0, 6, dtype=F64)
    return (weights * stats.mean).sum() + (weights.flip(0) * stats.m2.sqrt()).sum()


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found: list[dict[str, Tensor]] = []
    for case in range(len(COUNTS)):
        x = share(case, rank).requires_grad_()
        merged = merge_over_ranks(ops.bn_stats(x))
        single = merge_over_ranks(ops.bn_stats(x.float()))
        result = {"count": merged.count, "mean": merged.mean, "m2": merged.m2, "single": single.m2}
        if sum(COUNTS[case]):
            (g,) = grad(objective(merged), x, create_graph=True)
            (second,) = grad(g.square().sum(), x)
            result |= {"grad": g, "second": second}
        found.append({name: t.detach() for name, t in result.items()})
    saved = {"found": found, "collectives": collectives(), "grouped": grouped(rank)}
    torch.save(saved, Path(folder) / f"{rank}.pth")
    dist.destroy_process_group()


def collectives() -> list[list[str]]:
    """What a BatchNorm says to the other rank in forward and backward, as a module and not."""
    said: list[list[str]] = []
    names = ("all_reduce", "all_gather_into_tensor", "all_gather", "broadcast", "reduce")
    originals = {name: getattr(dist, name) for name in names}

    def told(name: str):
        def call(*args, **options):
            said[-1].append(name)
            return originals[name](*args, **options)

        return call

    norm, norms = get_norm("SyncBN", 5), BatchNorms()

    def outside(x: Tensor) -> Tensor:
        scale, shift = norms.affine(norm, ops.bn_stats(x), 24)
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)

    with mock.patch.multiple(dist, **{name: told(name) for name in names}):
        for run in (norm, outside):
            x = torch.randn(2, 5, 3, 4, requires_grad=True)
            said.append([])
            y = run(x)
            said.append([])
            y.square().sum().backward()
    return said


def grouped(rank: int) -> list[Tensor]:
    """Maps of a network whose BatchNorms have a group of this rank alone, by operators and by
    modules, and with BatchNorms of one process."""
    alone = [dist.new_group([number]) for number in range(2)][rank]
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(rank))
    state, found = backbone().state_dict(), []
    for norm, fused_ops in (("SyncBN", "on"), ("SyncBN", "off"), ("BN", "off")):
        net = backbone(norm=norm)
        net.load_state_dict(state)
        net.fused_ops = fused_ops
        for module in net.modules():
            if isinstance(module, torch.nn.SyncBatchNorm):
                module.process_group = alone
        found.append(net(x)["stage4"].detach())
    return found


def test_two_ranks(tmp_path: Path) -> None:
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)]
    for saved in ranks:
        assert saved["collectives"] == [["all_gather"], ["all_reduce"]] * 2
        by_operators, by_modules, expected = saved["grouped"]
        assert_close(by_modules, expected, 1e-4, "modules")
        assert_close(by_operators, expected, 1e-4, "operators")
    for case, counts in enumerate(COUNTS):
        found = [saved["found"][case] for saved in ranks]
        for name in ("count", "mean", "m2", "single"):
            assert torch.equal(found[0][name], found[1][name]), name
        shares = [share(case, rank).requires_grad_() for rank in range(2)]
        whole = ops.bn_stats(torch.cat(shares))
        assert found[0]["count"] == whole.count == 12 * sum(counts)
        torch.testing.assert_close(found[0]["mean"], whole.mean)
        torch.testing.assert_close(found[0]["m2"], whole.m2)
        torch.testing.assert_close(found[0]["single"].double(), whole.m2, rtol=2e-5, atol=0)
        if not sum(counts):
            continue
        # The sum over the ranks of their objectives, which are the same.
        gradients = grad(2 * objective(whole), shares, create_graph=True)
        seconds = grad(sum(g.square().sum() for g in gradients), shares)
        for rank in range(2):
            torch.testing.assert_close(found[rank]["grad"], gradients[rank].detach())
            torch.testing.assert_close(found[rank]["second"], seconds[rank])
