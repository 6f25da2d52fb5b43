"""A layer of a relaxed network: the weighted sum of all candidates (Hit-Detector eq. 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from detnas_d2.layers.batch_norm_mode import frozen_statistics
from detnas_d2.layers.fused_residual import can_fuse_mixture, mixture
from detnas_d2.layers.mixture_choice import choose
from detnas_d2.ops.autotune import AutotuneCache

FUSED_OPS = ("off", "cpu", "auto", "measured", "on")


class MixedBlock(nn.Module):
    """sum_i weights[i] * candidate_i(x) over the active candidates.

    With ``recompute`` the candidates' activations are not kept for the backward pass: forward
    saves the input and the weights alone, backward runs one candidate after the other again. At
    any time the activations of one candidate are alive instead of all. The result is the same;
    running statistics are updated once, in the forward pass.

    Args:
        ops: names of the candidates, in index order; also their names in the state dict.
        build: makes the module of a candidate from its name. Candidates must be deterministic
            functions of their input and parameters (no dropout).
        recompute: trade one more forward for memory.
    """

    def __init__(
        self,
        ops: tuple[str, ...],
        build: Callable[[str], nn.Module],
        *,
        recompute: bool = True,
    ) -> None:
        super().__init__()
        self.ops = ops
        self.recompute = recompute
        self.fused_ops = "off"  # one of FUSED_OPS, see the config key MODEL.HIT.FUSED_OPS
        self.autotune = AutotuneCache()  # what was tried out
        self.candidates = nn.ModuleDict({op: build(op) for op in ops})

    def forward(self, x: Tensor, weights: Tensor, active: Sequence[int] | None = None) -> Tensor:
        """The weighted sum.

        Args:
            x: (N, C, H, W).
            weights: (number of ops,).
            active: indices of the candidates to run, all by default; the others count as absent
                whatever their weight.
        """
        indices = range(len(self.ops)) if active is None else active
        modules = [self.candidates[self.ops[i]] for i in indices]
        chosen = weights if active is None else weights[list(active)]
        fused = self._fused(modules, x)
        if self.recompute and torch.is_grad_enabled():
            parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
            return _RecomputedSum.apply(modules, fused, x, chosen, *parameters)
        return _weighted_sum(modules, fused, x, chosen)

    def _fused(self, modules: Sequence[nn.Module], x: Tensor) -> list[bool]:
        """Which candidates the operators run, where they fit."""
        if self.fused_ops == "measured" or (self.fused_ops == "auto" and x.is_cuda):
            return choose(self.autotune, modules, x)
        on = self.fused_ops != "off" and (self.fused_ops == "on" or not x.is_cuda)
        return [on] * len(modules)


def _run(module: nn.Module, fused: bool, x: Tensor) -> Tensor:
    if fused and can_fuse_mixture([module], x):
        return mixture([module], x, x.new_ones(1))
    return module(x)


def _weighted_sum(
    modules: Sequence[nn.Module], fused: Sequence[bool], x: Tensor, weights: Tensor
) -> Tensor:
    together = [i for i, m in enumerate(modules) if fused[i] and can_fuse_mixture([m], x)]
    total = None
    if together:
        total = mixture([modules[i] for i in together], x, weights[together])
    for index, (module, weight) in enumerate(zip(modules, weights.unbind(), strict=True)):
        if index not in together:
            term = module(x) * weight
            total = term if total is None else total + term
    assert total is not None  # there is a candidate
    return total


def _autocast_state(device_type: str) -> dict[str, Any]:
    """Arguments for `torch.autocast` as it is now; empty where a device has none (meta)."""
    if not torch.amp.is_autocast_available(device_type):
        return {}
    return {
        "device_type": device_type,
        "enabled": torch.is_autocast_enabled(device_type),
        "dtype": torch.get_autocast_dtype(device_type),
    }


class _RecomputedSum(torch.autograd.Function):
    """The weighted sum with a backward pass that recomputes one candidate at a time.

    The parameters of the candidates are inputs, so that autograd delivers their gradients (and
    DistributedDataParallel sees them).
    """

    @staticmethod
    def forward(
        ctx: Any,
        modules: list[nn.Module],
        fused: list[bool],
        x: Tensor,
        weights: Tensor,
        *parameters: nn.Parameter,
    ) -> Tensor:
        ctx.modules, ctx.fused, ctx.parameters = modules, fused, parameters
        ctx.autocast = _autocast_state(x.device.type)
        ctx.save_for_backward(x, weights)
        return _weighted_sum(modules, fused, x, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weights = ctx.saved_tensors
        needs_x, needs_weights = ctx.needs_input_grad[2:4]
        grads: dict[int, Tensor] = {}
        grad_x: Tensor | None = None
        grad_weights = torch.zeros_like(weights) if needs_weights else None
        for i, module in enumerate(ctx.modules):
            x_i = x.detach().requires_grad_(needs_x)
            with (
                torch.enable_grad(),
                frozen_statistics(module),
                torch.autocast(**ctx.autocast) if ctx.autocast else nullcontext(),
            ):
                y = _run(module, ctx.fused[i], x_i)
            if grad_weights is not None:
                # In the precision of the weights: half precision overflows in such a sum.
                dtype = weights.dtype
                grad_weights[i] = (grad.to(dtype) * y.detach().to(dtype)).sum()
            inputs = [p for p in module.parameters() if p.requires_grad]
            if needs_x:
                inputs.insert(0, x_i)
            if not inputs or not y.requires_grad:
                continue
            found = torch.autograd.grad(y, inputs, grad * weights[i], allow_unused=True)
            del y
            for tensor, g in zip(inputs, found, strict=True):
                if g is None:
                    continue
                if tensor is x_i:
                    grad_x = g if grad_x is None else grad_x + g
                else:
                    known = grads.get(id(tensor))
                    grads[id(tensor)] = g if known is None else known + g
        return (None, None, grad_x, grad_weights, *(grads.get(id(p)) for p in ctx.parameters))
