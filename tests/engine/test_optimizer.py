"""AdamW and clipping by the whole model's norm, against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from detnas_d2.config.tools import base_config
from detnas_d2.engine import PathTrainer
from detnas_d2.engine.trainers.optimizer import build_optimizer, clip_each_norm_


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def config(**solver: object):
    cfg = base_config()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = "AdamW", 0.01, 0.1
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    for key, value in solver.items():
        node = cfg.SOLVER
        *parents, leaf = key.split("__")
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return cfg


def backward(model: nn.Module, scale: float = 1.0) -> None:
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    (model(x).square().mean() * scale).backward()


def test_adamw_is_torchs_without_decay_of_norms():
    ours, theirs = network(), network()
    optimizer = build_optimizer(config(), ours)
    norm = list(theirs[1].parameters())
    others = [p for m in (theirs[0], theirs[2]) for p in m.parameters()]
    reference = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.1}, {"params": norm, "weight_decay": 0.0}],
        lr=0.01,
        fused=True,
    )
    for _ in range(3):
        for model, step in ((ours, optimizer), (theirs, reference)):
            step.zero_grad()
            backward(model)
            step.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_weights_without_gradient_stay():
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(config(), model)
    optimizer.zero_grad(set_to_none=True)
    model[0](torch.ones(1, 3, 2, 2)).sum().backward()
    optimizer.step()
    after = model.state_dict()
    assert torch.equal(after["2.weight"], before["2.weight"])  # neither moved nor decayed
    assert not torch.equal(after["0.weight"], before["0.weight"])


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_clipping_by_the_norm_of_the_whole_model(optimizer: str):
    model = network()
    solver = {"CLIP_GRADIENTS__ENABLED": True, "CLIP_GRADIENTS__CLIP_TYPE": "full_model"}
    step = build_optimizer(
        config(OPTIMIZER=optimizer, CLIP_GRADIENTS__CLIP_VALUE=0.5, **solver), model
    )
    backward(model, scale=1e3)
    step.step()
    norms = torch.stack([p.grad.norm() for p in model.parameters()])
    assert float(norms.norm()) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_clipping_each_parameter_is_torchs_to_the_bit(norm_type: float, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 8, 1, 1), (16,), (24, 1, 7, 7), (1,), (3, 5), (0, 4)] * 20
    ours = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    for parameter in ours:
        scale = 10 ** float(torch.randn((), generator=generator))
        parameter.grad = (torch.randn(parameter.shape, generator=generator) * scale).to(dtype)
    ours[3].grad = None
    ours[4].grad = ours[4].grad.T.contiguous().T  # not contiguous
    theirs = copy.deepcopy(ours)
    for parameter, copied in zip(ours, theirs, strict=True):
        copied.grad = None if parameter.grad is None else parameter.grad.clone()
        if copied.grad is not None and (copied.numel() or norm_type != float("inf")):
            nn.utils.clip_grad_norm_(copied, 1.0, norm_type=norm_type)
    if norm_type == float("inf"):  # which an empty gradient does not have
        ours = [p for p in ours if p.numel()]
        theirs = [p for p in theirs if p.numel()]
    clip_each_norm_(ours, 1.0, norm_type)
    for parameter, copied in zip(ours, theirs, strict=True):
        assert (parameter.grad is None) == (copied.grad is None)
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, copied.grad)


def test_detectron2s_clipping_of_each_parameter():
    model = network()
    solver = {"CLIP_GRADIENTS__ENABLED": True, "CLIP_GRADIENTS__CLIP_TYPE": "norm"}
    step = build_optimizer(config(CLIP_GRADIENTS__CLIP_VALUE=0.5, **solver), model)
    backward(model, scale=1e3)
    step.step()
    norms = [float(p.grad.norm()) for p in model.parameters()]
    assert max(norms) == pytest.approx(0.5, rel=1e-4) and min(norms) <= 0.5


class Scored(nn.Module):
    """The network with a loss, as a trainer calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.network(x).square().mean()}


@pytest.mark.parametrize("kind", ["full_model", "norm", "value"])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_gradients_are_clipped_without_the_scale_of_the_loss(kind: str, optimizer: str) -> None:
    cfg = config(
        OPTIMIZER=optimizer, CLIP_GRADIENTS__ENABLED=True, CLIP_GRADIENTS__CLIP_TYPE=kind,
        CLIP_GRADIENTS__CLIP_VALUE=1e-6,
    )  # fmt: skip
    found = []
    for scale in (1.0, 2.0**16):
        model = Scored()
        step = PathTrainer(model, build_optimizer(cfg, model), path_sampler=None, seed=0)
        step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        step.set_data(
            torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(s)) for s in range(3)
        )
        with EventStorage(0):
            for step.iter in range(3):
                step.run_step()
        found.append(list(model.parameters()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
