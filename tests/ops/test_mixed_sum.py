from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from detnas_d2 import ops
from detnas_d2.ops import reference
from tests.ops.compare import (
    CAPABILITIES,
    TOLERANCE,
    capability,
    check_gradients,
    check_values,
    layouts,
)


@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 7, 9), (1, 48, 12, 10)])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("residual", [False, True])
def test_equals_reference(name: str, shape: tuple, count: int, residual: bool) -> None:
    torch.manual_seed(0)
    y = layouts(shape)[:count]
    scale, shift = ([torch.randn(shape[1]) for _ in y] for _ in range(2))
    args = (y, scale, shift, torch.randn(count), torch.randn(shape) if residual else None)
    with capability(name):
        check_values(ops.mixed_sum, reference.mixed_sum, args, 1e-6)
        check_gradients(ops.mixed_sum, reference.mixed_sum, args, torch.float32, 5e-5)
    check_gradients(ops.mixed_sum, reference.mixed_sum, args, torch.float64, 1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduced_precision(dtype: torch.dtype) -> None:
    y = [torch.randn(1, 4, 3, 3).to(dtype) for _ in range(3)]
    vectors = [torch.randn(4) for _ in range(6)]
    args = (y, vectors[:3], vectors[3:], torch.randn(3))
    check_values(ops.mixed_sum, reference.mixed_sum, args, TOLERANCE[dtype])


@pytest.mark.parametrize("count", [9, 16, 32])
def test_many_maps(count: int) -> None:
    torch.manual_seed(0)
    y = [torch.randn(1, 6, 3, 2) for _ in range(count)]
    vectors = [torch.randn(6) for _ in range(2 * count)]
    args = (y, vectors[:count], vectors[count:], torch.randn(count), torch.randn(1, 6, 3, 2))
    check_values(ops.mixed_sum, reference.mixed_sum, args, 1e-6)
    check_gradients(ops.mixed_sum, reference.mixed_sum, args, torch.float32, 5e-5)


def test_opcheck_and_errors() -> None:
    y = [torch.randn(1, 4, 3, 3, requires_grad=True) for _ in range(2)]
    v = [torch.randn(4, requires_grad=True) for _ in range(4)]
    weights = torch.randn(2, requires_grad=True)
    residual = torch.randn(1, 4, 3, 3, requires_grad=True)
    opcheck(torch.ops.detnas_d2.mixed_sum, (y, v[:2], v[2:], weights, residual))
    with pytest.raises(RuntimeError, match=r"weights: expected shape \[2\]"):
        ops.mixed_sum(y, v[:2], v[2:], torch.ones(3))
    with pytest.raises(RuntimeError, match="scale, shift: expected 2 vectors"):
        ops.mixed_sum(y, v[:1], v[2:], weights)
    for wrong in ([], [y[0]] * 33):
        with pytest.raises(RuntimeError, match=f"y: expected 1 to 32 tensors, got {len(wrong)}"):
            ops.mixed_sum(wrong, v[:1] * len(wrong), v[:1] * len(wrong), torch.ones(len(wrong)))
