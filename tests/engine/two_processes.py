"""What two processes compute for ``test_distributed.py``; its functions run in both."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from detnas_d2.data import register_datasets
from detnas_d2.engine import PathTrainer, Trainer, prepare, train
from detnas_d2.engine.evolution_search import load_supernet
from detnas_d2.engine.trainers.distillation import Distillation, FeatureLesson, SoftLabelLesson
from detnas_d2.engine.trainers.gradients import PathGradients, average_gradients, broadcast
from detnas_d2.engine.trainers.iteration import loss_normalizers
from detnas_d2.evaluation.build import candidate_evaluator, sequential_evaluator
from detnas_d2.evaluation.ranks import all_or_none
from detnas_d2.evaluation.settings import EvaluationSettings
from detnas_d2.layers import get_norm
from detnas_d2.modeling import activate
from detnas_d2.search_space import SPACES
from tests.engine.tiny_runs import arguments
from tests.helpers import classification_batch

TINY = SPACES["detnas_tiny"]
PATH = TINY.path([(layer + 1) % 4 for layer in range(TINY.num_layers)])
POPULATION = [PATH, *(TINY.path([*PATH.choices[:3], a, b]) for a, b in ((0, 0), (0, 1)))]
UPDATE = (*POPULATION, TINY.uniform_path("5x5"))
UPDATES: dict[str, Distillation | None] = {
    "plain": None,
    "soft labels": partial(SoftLabelLesson, weight=1.0),
    "features": partial(FeatureLesson, weight=1.0),
}
ARGS = arguments()
COUNTS = ((3, 1), (2, 0), (0, 0), (1, 2))
"""Images of rank 0 and rank 1 in the batches of :func:`sync_bn`."""


def shares(counts: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """(input, gradient of the output) of every rank."""
    generator = torch.Generator().manual_seed(sum(counts) + 1)
    draw = partial(torch.randn, generator=generator)
    return [(draw(n, 4, 3, 5) * 3 + 20, draw(n, 4, 3, 5)) for n in counts]


def affine_norm(name: str) -> nn.BatchNorm2d:
    norm = get_norm(name, 4, momentum=0.3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2, 3, 0.5]))
        norm.bias.copy_(torch.tensor([0.0, 1, -1, 2]))
    return norm


def sync_bn(rank: int) -> list[dict[str, Tensor]]:
    """Outputs, gradients and running statistics after each batch."""
    norm, found = affine_norm("SyncBN"), []
    for counts in COUNTS:
        x, direction = shares(counts)[rank]
        x.requires_grad_(True)
        norm.zero_grad()
        y = norm(x)
        (y * direction).sum().backward()
        tensors = {"y": y, "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
        tensors.update(norm.named_buffers())
        found.append({name: t.detach().clone() for name, t in tensors.items()})
    return found


def classifier(cfg: CfgNode, norm: str) -> nn.Module:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DETNAS.NORM = norm
    cfg.MODEL.CLASSIFIER.DROPOUT = 0.0
    torch.manual_seed(3)
    return build_model(cfg)


def gradients(model: nn.Module, batch: list[dict]) -> dict[str, Tensor | None]:
    """Averaged gradients of a path."""
    with activate(model, PATH):
        model(batch)["loss_cls"].backward()
    average_gradients(list(model.parameters()))
    return {name: p.grad for name, p in model.named_parameters()}


def update(
    cfg: CfgNode, batch: list[dict], distillation: Distillation | None = None
) -> dict[str, Tensor]:
    """Weights after an update of several paths; an operation may be in one or in all."""
    model = classifier(cfg, "GN")
    step = PathTrainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        path_sampler=lambda iteration: UPDATE,
        distillation=distillation,
        seed=0,
    )
    step.set_data([batch])
    with EventStorage():
        step.iter = 0
        step.run_step()
    return {name: p.detach() for name, p in model.named_parameters()}


def joint_batch() -> list[dict]:
    return classification_batch(64, [0, 1, 2, 1], seed=8)


def partial_gradients(rank: int) -> list[Any]:
    """Gradients of parameters that have one on both ranks, on rank 0, on none."""
    params = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    params[0].grad = torch.tensor([1.0, 2.0]) * (rank + 1)
    if rank == 0:
        params[1].grad = torch.tensor([4.0, 6.0])
    average_gradients(params)
    return [None if p.grad is None else p.grad.tolist() for p in params]


def partial_paths(rank: int) -> list[float]:
    """Gradient after two paths, of which the second gives one on rank 0 alone."""
    parameter = nn.Parameter(torch.zeros(2))
    paths = PathGradients([parameter])
    for gradient in ([1.0, 2.0], [3.0, 6.0] if rank == 0 else None):
        parameter.grad = None if gradient is None else torch.tensor(gradient)
        paths.take()
    paths.give_means()
    average_gradients([parameter])
    assert parameter.grad is not None
    return parameter.grad.tolist()


def training(cfg: CfgNode, out: Path) -> dict[str, Any]:
    """Paths and weights of a few iterations."""
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(out)
    prepare(cfg, ARGS)
    trainer = Trainer(cfg)
    step, paths = trainer.step, []
    if step.path_sampler is not None:
        sample = step.path_sampler
        step.path_sampler = lambda i: paths.extend(map(str, sample(i))) or sample(i)
    start = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    weights = {n: p.detach() for n, p in trainer.model.named_parameters()}
    buffers = dict(trainer.model.named_buffers())
    found = {"paths": paths, "start": start, "weights": weights, "buffers": buffers}
    return {**found, "results": str(results), "normalizers": loss_normalizers(trainer.model)}


def evaluation(cfg: CfgNode, kind: str = "population") -> dict[str, Any]:
    """Statistics and evaluations of candidates, two at a time."""
    register_datasets(cfg)
    cfg.SEARCH.CHUNK, cfg.SEARCH.SCORING_WORKERS = 2, 1
    settings, model = EvaluationSettings.from_config(cfg), load_supernet(cfg)
    if kind == "sequential":
        reference = sequential_evaluator(settings, model)
        statistics = {path: reference.statistics(path) for path in POPULATION}
        found = {path: reference.evaluate(path) for path in POPULATION}
    else:
        with candidate_evaluator(settings, model) as evaluator:
            statistics = evaluator.statistics(POPULATION)
            found = dict(evaluator.evaluate_many(POPULATION))
    return {
        str(path): {
            "statistics": {
                n: (m.count, m.mean, m.variance) for n, m in statistics[path].moments.items()
            },
            "fitness": found[path].fitness,
            "metrics": dict(found[path].metrics),
            "stages": sorted(found[path].seconds),
        }
        for path in POPULATION
    }


def checked(cfg: CfgNode, out: Path) -> dict[str, float]:
    """Numbers of the check of a supernet that is trained."""
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(out)
    prepare(cfg, ARGS)
    return train(cfg, resume=False)["supernet"]


def failure(rank: int) -> str:
    """What a rank hears of an error on rank 1."""
    try:
        with all_or_none():
            if rank == 1:
                raise FloatingPointError("not finite\nsecond line")
    except (FloatingPointError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def work(cfgs: dict[str, CfgNode], out: str) -> None:
    """Writes everything to ``<rank>.pth`` in ``out``."""
    torch.set_num_threads(1)
    rank, folder = comm.get_rank(), Path(out)
    found: dict[str, Any] = {"sync_bn": sync_bn(rank), "partial": partial_gradients(rank)}
    found["partial paths"] = partial_paths(rank)
    size = 4 // comm.get_world_size()
    mine = joint_batch()[rank * size : (rank + 1) * size]
    for norm in ("GN", "SyncBN"):
        model = classifier(cfgs["classifier"], norm)
        found[norm] = gradients(model, mine)
    for name, distillation in UPDATES.items():
        found[f"update, {name}"] = update(cfgs["classifier"], mine, distillation)
    torch.manual_seed(rank)
    other = nn.BatchNorm1d(3).requires_grad_(False)
    other.running_mean.normal_()
    broadcast((*other.parameters(), *other.buffers()))
    found["broadcast"] = other.running_mean
    for name in ("supernet", "searched", "retinanet"):
        found[name] = training(cfgs[name], folder / name)
    found["evaluation"] = evaluation(cfgs["search"])
    found["checked"] = checked(cfgs["checked"], folder / "checked")
    found["failure"] = failure(rank)
    torch.save(found, folder / f"{rank}.pth")
