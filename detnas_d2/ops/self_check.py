"""Whether two ways to compute the same agree on a device, told against float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Of the relative error (Euclidean norms) of a tensor, by dtype of the maps; four times what the
# other way errs is added. float32 products may be computed as TF32.
BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_FACTOR = 4
MOST = 0.1
"""Where the other way errs by more than this, too little but rounding is left to tell right from
wrong. A bound is thus below 0.5; a gradient that is missing has an error of 1."""
_LEAST = 1e-5  # of the largest norm: what is zero but for rounding has no relative error


class Verdict(NamedTuple):
    """What a comparison found.

    Attributes:
        tensor: name of the one with the largest error relative to its bound; "" if nothing could be
            told of any.
        error: of it; infinite if it has other values than numbers, or another shape.
        bound: what it must not exceed.
    """

    tensor: str
    error: float
    bound: float

    @property
    def agrees(self) -> bool:
        return bool(self.tensor) and self.error <= self.bound


def most_agree(check: Callable[[int], Verdict]) -> Verdict:
    """The verdict on up to three draws of inputs, two of which have to agree.

    A value so near to zero that a ReLU passes it on in one way alone makes gradients of a right way
    differ by more than rounding does; it is a rare draw that has one.

    Args:
        check: compares on draw 0, 1, 2; the latter two are asked for if the first disagrees.
    """
    first = check(0)
    if first.agrees:
        return first
    others = [check(1), check(2)]
    return others[0] if all(verdict.agrees for verdict in others) else first


def compare(
    found: Mapping[str, Tensor],
    trusted: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> Verdict:
    """Compares ``found`` with ``exact``, as far as ``trusted`` comes close to it.

    Args:
        found, trusted, exact: tensors by name, the same names in each; ``exact`` in float64.
        dtype: of the maps, see :data:`BOUNDS`.
    """
    norms = {name: float(torch.linalg.vector_norm(truth)) for name, truth in exact.items()}
    least = _LEAST * max(norms.values())
    worst = Verdict("", 0.0, 0.0)
    for name, truth in exact.items():
        norm = max(norms[name], least)
        own = _error(trusted[name], truth, norm)
        if own > MOST:
            continue
        error, bound = _error(found[name], truth, norm), BOUNDS[dtype] + _FACTOR * own
        if not worst.tensor or error / bound > worst.error / worst.bound:
            worst = Verdict(name, error, bound)
    return worst


def results(
    forward: Callable[[Tensor], Tensor],
    module: nn.Module,
    x: Tensor,
    trains: bool,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """What a forward pass, in training with its backward pass, leaves, by name.

    Args:
        forward: in the place of ``module``, which has parameters and running statistics.
        dtype: of the input, by default that of ``x``.
    """
    inputs = x.detach().to(dtype or x.dtype, copy=True).requires_grad_(trains)
    with torch.set_grad_enabled(trains):
        y = forward(inputs)
    found = {"output": y.detach()}
    if trains:
        # The same for all, and of no input: to a constant one BatchNorm gives no gradient.
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        sources = {"the input": inputs, **dict(module.named_parameters())}
        grads = torch.autograd.grad(y, list(sources.values()), grad.to(x).to(y))
        found |= {f"gradient of {name}": g for name, g in zip(sources, grads, strict=True)}
    buffers = module.named_buffers()
    return found | {name: b.detach().clone() for name, b in buffers if b.is_floating_point()}


def _error(found: Tensor, exact: Tensor, norm: float) -> float:
    if found.shape != exact.shape:
        return math.inf
    difference = float(torch.linalg.vector_norm(found.double() - exact))
    if difference == 0:
        return 0.0
    return difference / norm if math.isfinite(difference) and norm else math.inf
