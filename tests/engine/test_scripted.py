"""Scripted functions give the bits of their Python code from the first call on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fvcore.nn import (
    sigmoid_focal_loss,
    sigmoid_focal_loss_jit,
    sigmoid_focal_loss_star,
    sigmoid_focal_loss_star_jit,
)
from torch import Tensor

from detnas_d2.engine.scripted import plain_torchscript


def dice_loss(inputs: Tensor, targets: Tensor) -> Tensor:
    scores = inputs.sigmoid()
    numerator = 2 * (scores * targets).sum(-1)
    return (1 - (numerator + 1) / (scores.sum(-1) + targets.sum(-1) + 1)).sum()


def smooth_l1_loss(inputs: Tensor, targets: Tensor) -> Tensor:
    difference = (inputs - targets).abs()
    return torch.where(difference < 0.1, 0.5 * difference**2 / 0.1, difference - 0.05).mean()


def focal(function: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: function(x, y, alpha=0.25, gamma=2.0, reduction="sum")


LOSSES = {
    "focal": (focal(sigmoid_focal_loss), focal(sigmoid_focal_loss_jit)),
    "focal_star": (
        lambda x, y: sigmoid_focal_loss_star(x, y, 0.25, 3.0, "sum"),
        lambda x, y: sigmoid_focal_loss_star_jit(x, y, 0.25, 3.0, "sum"),
    ),
    "dice": (dice_loss, torch.jit.script(dice_loss)),
    "smooth_l1": (smooth_l1_loss, torch.jit.script(smooth_l1_loss)),
}


def results(loss: Callable[[Tensor, Tensor], Tensor], calls: int) -> list[Tensor]:
    """Value and gradient of each call."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 40, generator=generator)
    targets = (torch.rand(200, 40, generator=generator) < 0.1).float()
    found = []
    for _ in range(calls):
        x = inputs.clone().requires_grad_()
        value = loss(x, targets)
        value.backward()
        found.append(torch.cat([value.detach()[None], x.grad.flatten()]))
    return found


@pytest.mark.parametrize("name", LOSSES)
def test_every_call_is_the_python_code_to_the_bit(name: str) -> None:
    eager, scripted = LOSSES[name]
    (expected,) = results(eager, 1)
    # Optimised by somebody else before, e.g. by another training in this process.
    results(scripted, 3)
    with plain_torchscript():
        for found in results(scripted, 4):
            assert torch.equal(found, expected)


def test_the_setting_of_others_is_kept() -> None:
    before = torch._C._get_graph_executor_optimize()
    with pytest.raises(ZeroDivisionError), plain_torchscript(), plain_torchscript():
        assert not torch._C._get_graph_executor_optimize()
        raise ZeroDivisionError
    assert torch._C._get_graph_executor_optimize() == before
