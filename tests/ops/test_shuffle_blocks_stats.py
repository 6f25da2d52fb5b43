"""shuffle_blocks_stats: several blocks in one call, to the bit as one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from detnas_d2 import ops
from detnas_d2.ops.shuffle_block_stats import StatsBlock, one_by_one, shuffle_blocks_stats
from tests.ops.compare import CAPABILITIES, capability, layouts, tensors
from tests.ops.test_shuffle import CHAINS, block


def drawn(
    channels: int, kinds: Sequence[Sequence[int]], dtype: torch.dtype, packs: bool = False
) -> list[StatsBlock]:
    """Blocks of these kernels, strides and shuffle methods."""
    blocks = []
    for kernel, stride, method in zip(*kinds, strict=True):
        weights, betas = block(channels, kernel, stride)
        weights = [w.to(dtype) for w in weights]
        gammas = [torch.rand(len(b)) + 0.5 for b in betas]
        packed = ops.pack_shuffle_block(weights, kernel, stride) if packs else []
        eps = [0.1 * (i + 1) for i in range(len(weights))]
        blocks.append(StatsBlock(weights, packed, gammas, betas, eps, kernel, stride, method))
        out = weights[5 if kernel == 0 else 2].shape[0]
        channels = out + (channels if stride == 2 else channels // 2)
    return blocks


def check_bits(args: tuple) -> None:
    """The call is the blocks one by one."""
    for a, b in zip(tensors(shuffle_blocks_stats(*args)), tensors(one_by_one(*args)), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.dim() != 4 or a.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@torch.no_grad()
def test_it_has_the_bits_of_one_by_one(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    threads, kinds = torch.get_num_threads(), CHAINS[name]
    count = len(kinds[0])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shapes = ((2, 8, 17, 23), (4, 24, 3, 2), (2, 64, 9, 5), (0, 8, 5, 7))
    try:
        for case, (shape, batches) in enumerate(itertools.product(shapes, (1, 2))):
            torch.set_num_threads(1 + case % 3)
            blocks = drawn(shape[1], kinds, dtype, packs=case % 2 == 1)
            x = layouts(shape, dtype)[case % 5]
            of_batches = (shape[1],) if batches == 1 else (batches, shape[1])
            scale, shift = (torch.randn(of_batches, dtype=wide) for _ in range(2))
            some = [n for n in range(1, count) if n % 2]
            for ends in ([count], [*some, count], list(range(1, count + 1))):
                for pending in ((None, None, False), (scale, shift, True)):
                    check_bits((x, *pending, blocks, ends, batches))
                    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
                        check_bits((x, *pending, blocks, ends, batches))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", CAPABILITIES)
@torch.no_grad()
def test_every_instruction_set_and_nan(name: str) -> None:
    torch.manual_seed(0)
    with capability(name):
        blocks, x = drawn(12, CHAINS["stages"], torch.float32), torch.randn(2, 12, 11, 15)
        check_bits((x, None, None, False, blocks, [3, 6], 2))
        x[0, 1, 2, 3] = torch.nan
        check_bits((x, None, None, False, blocks, [3, 6], 2))


@torch.no_grad()
def test_halves_of_the_last_call_are_not_read() -> None:
    torch.manual_seed(0)
    small, large = (drawn(c, CHAINS["stages"], torch.float32) for c in (8, 64))
    for blocks, shape in ((large, (2, 64, 20, 30)), (small, (1, 8, 9, 7)), (large, (1, 64, 5, 6))):
        check_bits((torch.randn(shape), None, None, False, blocks, [6], 1))


def test_it_is_counted_refuses_gradients_and_says_what_is_wrong() -> None:
    torch.manual_seed(0)
    blocks, x = drawn(8, CHAINS["stages"], torch.float32), torch.randn(1, 8, 16, 16)
    op = torch.ops.detnas_d2.shuffle_blocks_stats
    lists = [[v for one in blocks for v in one[i]] for i in range(5)]
    first, rest = (x, None, None, False), (*lists, *CHAINS["stages"])
    opcheck(op, (*first, *rest, [2, 6]))
    flops = []
    for way in (shuffle_blocks_stats, one_by_one):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            way(*first, blocks, [6])
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0
    wanting: tuple[Tensor | None | bool, ...] = (x.clone().requires_grad_(), None, None, False)
    with pytest.raises(NotImplementedError, match="not differentiable, but x requires grad"):
        op(*wanting, *rest, [6])
    with torch.no_grad():
        for ends in ([2, 2, 6], [0, 6], [3, 1, 6]):
            with pytest.raises(RuntimeError, match="ends: expected ascending from 1"):
                op(*first, *rest, ends)
        for ends in ([2], [], [2, 7]):
            with pytest.raises(RuntimeError, match="ends: expected 6 last"):
                op(*first, *rest, ends)
        kernels, _, methods = CHAINS["stages"]
        for wrong in ([1] * 5, [1] * 7):
            with pytest.raises(RuntimeError, match="expected one of each block, got 6, "):
                op(*first, *lists, kernels, wrong, methods, [6])
        with pytest.raises(RuntimeError, match="kernels, strides, methods: expected one of each"):
            op(*first, [], [], [], [], [], [], [], [], [])
        with pytest.raises(RuntimeError, match="methods: expected 1 or 2, got 0"):
            op(*first, *lists, *CHAINS["stages"][:2], [1, 2, 0, 1, 2, 1], [6])
        odd = drawn(8, ([3], [2], [2]), torch.float32)
        lists = [[v for one in odd for v in one[i]] for i in range(5)]
        lists[0][2] = torch.randn(7, *lists[0][2].shape[1:])
        lists[2][2], lists[3][2] = torch.ones(7), torch.ones(7)
        following = drawn(14, ([3], [1], [2]), torch.float32)
        lists = [a + [v for one in following for v in one[i]] for i, a in enumerate(lists)]
        with pytest.raises(RuntimeError, match="even number of channels for block 1 of stride 1"):
            op(*first, *lists, [3, 3], [2, 1], [2, 2], [2])
