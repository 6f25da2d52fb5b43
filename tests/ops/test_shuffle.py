"""shuffle_concat and shuffle_block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from detnas_d2 import ops
from detnas_d2.ops import reference
from detnas_d2.ops.shuffle_block import PackedBlock, out_methods, shuffle_blocks
from tests.ops.compare import (
    CAPABILITIES,
    TOLERANCE,
    block,
    capability,
    channels_last,
    check_gradients,
    check_values,
    layouts,
)


def halves(channels: int) -> tuple:
    return torch.randn(channels), torch.randn(channels)


@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 4, 7), (1, 48, 5, 6)])
@pytest.mark.parametrize("method", [0, 1, 2])
@pytest.mark.parametrize("split", [False, True])
def test_shuffle_concat(name: str, shape: tuple, method: int, split: bool) -> None:
    torch.manual_seed(0)
    c = shape[1]
    with capability(name):
        for left, right in zip(layouts(shape), reversed(layouts(shape)), strict=True):
            for args in (
                (left, right, None, None, *halves(c), False, True, method, split),
                (left, right, *halves(c), *halves(c), True, True, method, split),
                (left, right, None, None, None, None, False, False, method, split),
            ):
                check_values(ops.shuffle_concat, reference.shuffle_concat, args, 1e-6)
            check_gradients(
                ops.shuffle_concat,
                reference.shuffle_concat,
                (left, right, None, None, *halves(c), False, True, method, split),
                torch.float32,
                2e-5,
            )


def test_halves_of_different_size_and_gradients_of_both_affines() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(2, 3, 4, 5), torch.randn(2, 7, 4, 5)
    for method, split in ((0, False), (1, True), (2, True)):
        args = (left, right, *halves(3), *halves(7), True, False, method, split)
        check_values(ops.shuffle_concat, reference.shuffle_concat, args, 1e-6)
        check_gradients(ops.shuffle_concat, reference.shuffle_concat, args, torch.float64, 1e-9)


def test_channel_shuffle_interleaves_groups() -> None:
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert reference.channel_shuffle(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert reference.channel_shuffle(x, 1) is x
    assert reference.channel_shuffle(torch.empty(0, 6, 2, 3), 2).shape == (0, 6, 2, 3)


def test_methods_are_those_of_the_released_code() -> None:
    x = torch.arange(8.0).view(1, 8, 1, 1)
    left, right = ops.shuffle_concat(x[:, :4], x[:, 4:], method=1, split=True)
    assert left.flatten().tolist() == [0, 4, 1, 5] and right.flatten().tolist() == [2, 6, 3, 7]
    left, right = ops.shuffle_concat(x[:, :4], x[:, 4:], method=2, split=True)
    assert left.flatten().tolist() == [0, 2, 4, 6] and right.flatten().tolist() == [1, 3, 5, 7]


def test_shuffle_concat_errors_and_empty() -> None:
    x = torch.randn(1, 3, 2, 2)
    with pytest.raises(RuntimeError, match="even number of channels"):
        ops.shuffle_concat(x, x[:, :2], method=2)
    with pytest.raises(RuntimeError, match="right: expected the batch and size of left"):
        ops.shuffle_concat(x, x[..., :1])
    with pytest.raises(RuntimeError, match="method: expected 0, 1 or 2"):
        ops.shuffle_concat(x, x, method=3)
    assert ops.shuffle_concat(x[:0], x[:0]).shape == (0, 6, 2, 2)


def test_shuffle_concat_opcheck() -> None:
    left, right = (torch.randn(2, 4, 3, 3, requires_grad=True) for _ in range(2))
    scale, shift = (torch.randn(4, requires_grad=True) for _ in range(2))
    for split in (True, False):
        args = (left, right, None, None, scale, shift, False, True, 2, split)
        opcheck(torch.ops.detnas_d2.shuffle_concat, args)


@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize("kernel", [3, 5, 7, 0])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (2, 10, 13, 9), (1, 64, 40, 56), (1, 96, 3, 50)])
def test_shuffle_block(name: str, kernel: int, stride: int, shape: tuple) -> None:
    torch.manual_seed(0)
    weights, biases = block(shape[1], kernel, stride)
    x = torch.randn(shape)
    threads = torch.get_num_threads()
    with capability(name):
        try:
            for method, n in ((1, 1), (2, 3)):
                torch.set_num_threads(n)
                for layout in (x, channels_last(x)):
                    args = (layout, weights, biases, kernel, stride, method)
                    check_values(ops.shuffle_block, reference.shuffle_block, args, 5e-5)
        finally:
            torch.set_num_threads(threads)


def test_shuffle_block_dtypes_errors_and_opcheck() -> None:
    weights, biases = block(8, 3, 1)
    x = torch.randn(1, 8, 5, 5)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        args = (x.to(dtype), [w.to(dtype) for w in weights], biases, 3, 1, 2)
        check_values(ops.shuffle_block, reference.shuffle_block, args, TOLERANCE[dtype] * 2)
    opcheck(torch.ops.detnas_d2.shuffle_block, (x, weights, biases, 3, 1, 2))
    assert ops.shuffle_block(x[:0], weights, biases, 3, 1, 2).shape == (0, 8, 5, 5)
    with pytest.raises(RuntimeError, match="weights, biases: expected 3 tensors each"):
        ops.shuffle_block(x, weights[:2], biases[:2], 3, 1, 2)
    with pytest.raises(RuntimeError, match="kernel: expected 3, 5, 7 or 0"):
        ops.shuffle_block(x, weights, biases, 4, 1, 2)


def packed_reference(
    x: Tensor, right: Tensor | None, weights: list, biases: list, *options: int
) -> Tensor | tuple:
    """The block between maps that are shuffled and split."""
    kernel, stride, method, out_method = options
    if right is not None:  # the shuffle that takes the halves apart, backwards
        x = reference.shuffle(torch.cat((x, right), 1), 3 - method)
    y = reference.shuffle_block(x, weights, biases, kernel, stride, method)
    if not out_method:
        return y
    return tuple(channels_last(t) for t in reference.shuffle(y, out_method).chunk(2, 1))


def packed_call(
    x: Tensor, right: Tensor | None, weights: list, biases: list, *options: int
) -> Tensor | tuple:
    kernel, stride, method, out_method = options
    packed = ops.pack_shuffle_block(weights, kernel, stride, out_method)
    args = (kernel, stride, method, packed, right, out_method)
    return ops.shuffle_block(x, weights, biases, *args)


@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize("kernel", [3, 5, 7, 0])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "shape", [(2, 4, 1, 2), (2, 20, 13, 9), (1, 64, 40, 56), (1, 160, 7, 45), (2, 320, 5, 9)]
)
def test_packed_blocks_between_halves(name: str, kernel: int, stride: int, shape: tuple) -> None:
    torch.manual_seed(0)
    c = shape[1]
    weights, biases = block(c, kernel, stride)
    x = torch.randn(shape)
    halves = [(x, None), (channels_last(x), None)]
    if stride == 1:
        left, right = x[:, : c // 2], x[:, c // 2 :]
        halves += [(left, right), (channels_last(left), channels_last(right))]
        halves += [(x[:, 0::2], channels_last(x)[:, 1::2])]
    threads = torch.get_num_threads()
    with capability(name):
        try:
            for method, out_method in ((1, 0), (2, 1), (1, 2)):
                torch.set_num_threads(1 + out_method)
                for some in halves:
                    args = (*some, weights, biases, kernel, stride, method, out_method)
                    check_values(packed_call, packed_reference, args, 5e-5)
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "shape"), [(5, (2, 32, 17, 23)), (0, (1, 64, 10, 15))])
def test_packed_blocks_have_the_bits_of_whole_maps_and_of_any_number_of_threads(
    stride: int, kernel: int, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    weights, biases = block(shape[1], kernel, stride)
    x = channels_last(torch.randn(shape))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = ops.shuffle_block(x, weights, biases, kernel, stride, 2)
        for count in (1, 2, 5, 16):
            torch.set_num_threads(count)
            args = (x, None, weights, biases, kernel, stride, 2)
            assert torch.equal(whole, packed_call(*args, 0))
            a, b = packed_call(*args, 2)
            assert torch.equal(whole[:, 0::2], a) and torch.equal(whole[:, 1::2], b)
    finally:
        torch.set_num_threads(threads)


def test_packed_block_dtypes_nan_errors_and_opcheck() -> None:
    torch.manual_seed(0)
    weights, biases = block(8, 3, 1)
    x = torch.randn(1, 8, 5, 5)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        lower = [w.to(dtype) for w in weights]
        args = (x[:, :4].to(dtype), x[:, 4:].to(dtype), lower, biases, 3, 1, 2, 2)
        check_values(packed_call, packed_reference, args, TOLERANCE[dtype] * 2)
    packed = ops.pack_shuffle_block(weights, 3, 1)
    op = torch.ops.detnas_d2.shuffle_block_packed
    opcheck(op, (x, None, weights, packed, biases, 3, 1, 2, 0))
    opcheck(op, (x[:, :4], x[:, 4:], weights, packed, biases, 3, 1, 2, 1))
    opcheck(torch.ops.detnas_d2.pack_shuffle_block, (weights, 3, 1))
    parted, their_biases = block(64, 0, 2)
    opcheck(torch.ops.detnas_d2.pack_shuffle_block, (parted, 0, 2, 2))
    with pytest.raises(RuntimeError, match=r"packed\[5\]: expected shape"):
        whole = ops.pack_shuffle_block(parted, 0, 2)
        ops.shuffle_block(torch.randn(1, 64, 5, 5), parted, their_biases, 0, 2, 2, whole, None, 2)
    with pytest.raises(RuntimeError, match="out_method: expected 0, 1 or 2, got 3"):
        ops.pack_shuffle_block(weights, 3, 1, 3)
    a, b = ops.shuffle_block(x[:0], weights, biases, 3, 1, 2, packed, None, 2)
    assert a.shape == b.shape == (0, 4, 5, 5)
    poisoned = x.clone()
    poisoned[0, 5, 2, 3] = torch.nan
    check_values(packed_call, packed_reference, (poisoned, None, weights, biases, 3, 1, 2, 2), 1e-5)
    with pytest.raises(ValueError, match="expected with packed weights alone"):
        ops.shuffle_block(x, weights, biases, 3, 1, 2, out_method=1)
    with pytest.raises(RuntimeError, match=r"packed\[0\]: expected a contiguous tensor"):
        bad = [torch.stack((packed[0], packed[0]), -1)[..., 0], *packed[1:]]
        ops.shuffle_block(x, weights, biases, 3, 1, 2, bad)
    with pytest.raises(RuntimeError, match="right: expected at stride 1 only"):
        strided, more = block(8, 3, 2)
        bad = ops.pack_shuffle_block(strided, 3, 2)
        ops.shuffle_block(x, strided, more, 3, 2, 2, bad, x)


CHAINS = {  # kernels, strides, shuffle methods of blocks
    "one": ([3], [2], [1]),
    "stride 1": ([5, 0, 3], [1, 1, 1], [2, 1, 2]),
    "stages": ([0, 7, 3, 5, 0, 3], [2, 1, 1, 2, 2, 1], [1, 2, 2, 1, 2, 1]),
}


def chain(name: str, channels: int, dtype: torch.dtype = torch.float32) -> list[PackedBlock]:
    blocks = []
    for kernel, stride, method in zip(*CHAINS[name], strict=True):
        weights, biases = block(channels, kernel, stride)
        lists = [w.to(dtype) for w in weights], [b.to(dtype) for b in biases]
        packed = ops.pack_shuffle_block(lists[0], kernel, stride)
        blocks.append(PackedBlock(lists[0], packed, lists[1], kernel, stride, method))
        out = weights[5 if kernel == 0 else 2].shape[0]
        channels = out + (channels if stride == 2 else channels // 2)
    return blocks


def packed_for(blocks: list[PackedBlock], ends: list[int]) -> list[PackedBlock]:
    """The blocks for one call that leaves the outputs after so many of them."""
    methods = out_methods([b.stride for b in blocks], [b.method for b in blocks], ends)
    return [
        b._replace(packed=ops.pack_shuffle_block(b.weights, b.kernel, b.stride, out_method))
        for b, out_method in zip(blocks, methods, strict=True)
    ]


def one_by_one(x: Tensor, blocks: list[PackedBlock]) -> list[Tensor]:
    outputs = []
    for weights, packed, biases, *options in blocks:
        x = ops.shuffle_block(x, weights, biases, *options, packed)
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@torch.no_grad()
def test_blocks_in_one_call_have_the_bits_of_one_by_one(name: str, dtype: torch.dtype) -> None:
    for shape in ((2, 8, 17, 23), (1, 24, 1, 2), (1, 64, 9, 5), (0, 8, 5, 7)):
        blocks, x = chain(name, shape[1], dtype), torch.randn(shape).to(dtype)
        some = [n for n in range(1, len(blocks)) if n % 2]
        for ends in ([len(blocks)], [*some, len(blocks)], list(range(1, len(blocks) + 1))):
            for given in (x, channels_last(x)):
                for autocast in (False, True):
                    with torch.autocast("cpu", torch.float16, enabled=autocast):
                        expected = one_by_one(given, blocks)
                        found = shuffle_blocks(given, packed_for(blocks, ends), ends)
                    for end, y in zip(ends, found, strict=True):
                        assert y.dtype == expected[end - 1].dtype
                        assert torch.equal(y, expected[end - 1])


def test_blocks_in_one_call_are_counted_refuse_gradients_and_say_what_is_wrong() -> None:
    blocks, x = chain("stages", 8), torch.randn(1, 8, 16, 16)
    op = torch.ops.detnas_d2.shuffle_blocks_packed
    lists = [[t for block in blocks for t in block[i]] for i in range(3)]
    args = (*lists, *CHAINS["stages"])
    opcheck(op, (x, *args, [2, 6]))
    flops = []
    for way in (lambda: shuffle_blocks(x, blocks, [6]), lambda: one_by_one(x, blocks)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            way()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0
    with pytest.raises(NotImplementedError, match="not differentiable, but x requires grad"):
        shuffle_blocks(x.requires_grad_(), blocks, [6])
    with torch.no_grad():
        for ends in ([2, 2, 6], [0, 6], [3, 1, 6]):
            with pytest.raises(RuntimeError, match="ends: expected ascending from 1"):
                op(x, *args, ends)
        for ends in ([2], [], [2, 7]):
            with pytest.raises(RuntimeError, match="ends: expected 6 last"):
                op(x, *args, ends)
        with pytest.raises(RuntimeError, match="expected one of each block, got 6, 5 and 6"):
            op(x, *lists, CHAINS["stages"][0], [1] * 5, [1] * 6, [6])
