"""An update of several paths: mean gradients, of the same batch, as of each path alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from statistics import fmean

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from detnas_d2.engine import PathTrainer, Trainer, prepare, train
from detnas_d2.engine.trainers.gradients import PathGradients
from detnas_d2.engine.trainers.iteration import iteration_seed, loss_normalizers
from detnas_d2.modeling import activate
from detnas_d2.search_space import SPACES
from detnas_d2.search_space import Path as NetworkPath
from tests.engine.test_trainer import ARGS, Interrupt, endless, final, momenta, same
from tests.engine.tiny_runs import Configs
from tests.helpers import changed, snapshot

TINY = SPACES["detnas_tiny"]
PATHS = tuple(map(TINY.path, ([0, 1, 2, 3, 0], [0, 2, 2, 1, 3], [1, 1, 2, 0, 0])))
"""The third layer's operation is in all of them, those of the others in one or two."""


def update_of(
    paths: tuple[NetworkPath, ...], model: nn.Module, optimizer: torch.optim.Optimizer, batch: list
) -> dict[str, float]:
    """Runs iteration 5, of ``paths``; returns its metrics."""
    step = PathTrainer(model, optimizer, path_sampler=lambda iteration: paths, seed=3)
    step.set_data([batch])
    with EventStorage(5) as storage:
        step.iter = 5
        step.run_step()
        return {name: value for name, (value, _) in storage.latest().items()}


def alone(
    model: nn.Module, path: NetworkPath, index: int, batch: list
) -> tuple[dict[str, Tensor], dict[str, float], dict[str, float]]:
    """Gradients, losses and loss normalisers of one path, by hand."""
    model = copy.deepcopy(model)
    torch.manual_seed(iteration_seed(3, 5, 0, index))
    with activate(model, path), EventStorage(5):
        losses = model(batch)
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return gradients, {n: v.item() for n, v in losses.items()}, loss_normalizers(model)


@pytest.mark.parametrize("kind", ["classifier", "faster", "retinanet"])
def test_an_update_is_the_mean_of_single_paths(kind: str, configs: Configs) -> None:
    cfg = configs(kind, "MODEL.CLASSIFIER.DROPOUT", 0.5)
    torch.manual_seed(1)
    model = build_model(cfg)
    batch = next(endless(kind))
    found = [alone(model, path, index, batch) for index, path in enumerate(PATHS)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    metrics = update_of(PATHS, model, optimizer, batch)
    uses = set()
    for name, p in model.named_parameters():
        gradients = [g[name] for g, _, _ in found if name in g]
        uses.add(len(gradients))
        if not gradients:
            assert p.grad is None and torch.equal(p, before[name]), name
            continue
        mean = torch.stack(gradients).mean(0)
        torch.testing.assert_close(p.grad, mean, rtol=1e-5, atol=1e-7, msg=name)
        torch.testing.assert_close(p.detach(), before[name] - 0.1 * mean, rtol=1e-5, atol=1e-6)
    assert uses == {0, 1, 2, 3}
    for name in found[0][1]:
        expected = fmean(losses[name] for _, losses, _ in found)
        # A single loss has no other name than the total.
        assert metrics.get(name, metrics["total_loss"]) == pytest.approx(expected, rel=1e-5)
    # An update sees its images once, so it moves a normaliser once.
    assert loss_normalizers(model) == pytest.approx(found[0][2])
    assert bool(found[0][2]) == (kind == "retinanet")


def test_paths_of_an_update_draw_for_themselves() -> None:
    seeds = [iteration_seed(3, 5, rank, path) for rank in range(2) for path in range(3)]
    assert len(set(seeds)) == 6
    assert iteration_seed(3, 5, 1, 0) == iteration_seed(3, 5, 1)
    # Of earlier versions: interrupted trainings go on with it.
    assert iteration_seed(3, 5, 1) == 53_421_431_675_496_953


def test_mean_over_the_paths_that_used_a_parameter() -> None:
    shared, own, twice, unused = (nn.Parameter(torch.zeros(2)) for _ in range(4))
    gradients = PathGradients([shared, own, twice, unused])
    for path, users in enumerate(((shared, own), (shared, twice), (shared, twice), (shared,))):
        for p in users:
            p.grad = torch.tensor([1.0, 2.0]) * (path + 1)
        gradients.take()
        assert shared.grad is None and own.grad is None and twice.grad is None
    gradients.give_means()
    assert shared.grad.tolist() == [2.5, 5.0]
    assert own.grad.tolist() == [1.0, 2.0]
    assert twice.grad.tolist() == [2.5, 5.0]
    assert unused.grad is None


@pytest.mark.parametrize("kind", ["classifier", "faster"])
def test_operations_of_no_path_stay(kind: str, configs: Configs) -> None:
    """Neither gradient nor momentum nor weight decay moves them, though all moved before."""
    cfg = configs(kind, "SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.WEIGHT_DECAY_NORM", 0.1)
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    everything = tuple(TINY.uniform_path(op) for op in TINY.ops)
    batches = endless(kind)
    update_of(everything, model, optimizer, next(batches))
    assert len(momenta(model, optimizer)) == len(list(model.parameters()))
    weights, moving = snapshot(model), momenta(model, optimizer)
    update_of(PATHS[:2], model, optimizer, next(batches))
    moved = changed(model, weights)
    moved |= {n for n, v in momenta(model, optimizer).items() if not torch.equal(v, moving[n])}
    used = {f".blocks.{i}.candidates.{op}." for path in PATHS[:2] for i, op in enumerate(path.ops)}
    candidates = {n for n, _ in model.named_parameters() if ".candidates." in n}
    assert moved & candidates == {n for n in candidates if any(place in n for place in used)}
    assert 0 < len(moved & candidates) < len(candidates)


ELASTIC = {
    "NAME": "tiny_elastic",
    "STEM": 8,
    "LAST": 256,
    "OPS": ["3x3", "7x7_e2", "skip"],
    "STAGES": [
        *({"CHANNELS": 24 * 2**stage, "DEPTH": 1 + stage % 2} for stage in range(3)),
        {"CHANNELS": 192, "DEPTH": 1, "OPS": ["3x3", "5x5", "7x7", "xception"]},
    ],
}


@pytest.mark.parametrize(
    ("kind", "sampling"),
    [("retinanet", "fair"), ("faster", "sandwich"), ("classifier", "sandwich")],
)
def test_resumed_training_is_the_uninterrupted_one(
    kind: str, sampling: str, configs: Configs, tmp_path: Path
) -> None:
    space = ("MODEL.DETNAS.SPACES", [ELASTIC], "MODEL.DETNAS.SPACE", ELASTIC["NAME"])
    cfgs = []
    for name in ("whole", "torn"):
        cfg = configs(kind, "SUPERNET.PATH_SAMPLING", sampling, *space)
        cfg.OUTPUT_DIR = str(tmp_path / name)
        cfgs.append(cfg)
        prepare(cfg, ARGS)
        trainer = Trainer(cfg)
        trainer.register_hooks([Interrupt(5)] if name == "torn" else [])
        trainer.resume_or_load(resume=True)
        if name == "whole":
            trainer.train()
            continue
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        assert (tmp_path / name / "last_checkpoint").read_text() == "model_0000003.pth"
        train(cfg, resume=True)
    whole, torn = map(final, cfgs)
    assert same(torn, whole)
    lines = (tmp_path / "whole" / "metrics.json").read_text().splitlines()
    assert ("loss_distill" in json.loads(lines[-1])) == (sampling == "sandwich")
