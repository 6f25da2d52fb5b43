"""digest: whether tensors still hold what they held."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detnas_d2.ops.extension import has_extension

pytestmark = pytest.mark.skipif(not has_extension(), reason="the operators are not built")


def of_one(*tensors: Tensor) -> int:
    (found,) = torch.ops.detnas_d2.digest(list(tensors), [len(tensors)])
    return found


def drawn() -> list[Tensor]:
    sizes = [(1,), (), (7, 3), (0,), (64, 1, 5, 5), (33, 21, 1, 1), (24,), (1030,)]
    found = [torch.randn(size) for size in sizes]
    return [*found, torch.randn(9, 14).t(), torch.randn(5, 7)[:, 1::2], torch.arange(11)]


def test_groups_are_what_they_are_alone() -> None:
    tensors, counts = drawn(), [3, 1, 5, 2]
    found = torch.ops.detnas_d2.digest(tensors, counts)
    rest = iter(tensors)
    assert found == [of_one(*(next(rest) for _ in range(count))) for count in counts]
    assert len(set(found)) == len(counts)
    assert torch.ops.detnas_d2.digest([t.clone() for t in tensors], counts) == found


def test_every_bit_counts() -> None:
    for t in drawn():
        t = t.contiguous()
        before = of_one(t)
        bits = t.view(torch.uint8).flatten() if t.dim() else t.view(1).view(torch.uint8)
        for place in {0, len(bits) // 2, len(bits) - 1} if len(bits) else ():
            for bit in (1, 128):
                bits[place] ^= bit
                assert of_one(t) != before
                bits[place] ^= bit
        assert of_one(t) == before


def test_order_shape_and_dtype_count() -> None:
    a, b = torch.randn(12), torch.randn(12)
    found = [of_one(a, b), of_one(b, a), of_one(a), of_one(a.view(3, 4)), of_one(a.view(4, 3))]
    found += [of_one(a.view(torch.int32)), of_one(torch.cat([a, b])), of_one(a, b, a[:0])]
    assert len(set(found)) == len(found)


def test_wrong_counts() -> None:
    with pytest.raises(RuntimeError, match="counts: expected 2 tensors in all, got 3"):
        torch.ops.detnas_d2.digest([torch.ones(1)] * 2, [1, 2])
    with pytest.raises(RuntimeError, match="counts: expected none below 0, got -1"):
        torch.ops.detnas_d2.digest([torch.ones(1)] * 2, [3, -1])
