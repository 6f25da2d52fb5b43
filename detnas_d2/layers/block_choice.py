"""Blocks through the operators or through their modules, whichever is faster on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from detnas_d2.layers.folded_norm import conv_norm_acts
from detnas_d2.layers.shuffle_block import ShuffleBlock
from detnas_d2.ops.autotune import AutotuneCache, size_class

Run = Callable[[ShuffleBlock, Tensor], Tensor]


def choose(
    autotune: AutotuneCache, blocks: Sequence[nn.Module], x: Tensor, mode: str, run: Run
) -> list[bool]:
    """For every block of a chain whether the operators are to run it.

    A class is one kind of block, its channels, its number of pixels up to the next power of two,
    dtype, threads and mode. It is measured on a new block of it with random weights; the chain's
    blocks and the global random generator are left alone.

    Args:
        blocks: others than shuffle blocks are their modules' to run.
        x: (N, C, H, W), the first block's input; only its shape and dtype count.
        mode: "training" (forward and backward, with batch statistics), "statistics" or
            "evaluation".
        run: runs a block through the operators in this mode.
    """
    n, _, h, w = x.shape
    chosen = []
    for block in blocks:
        if not isinstance(block, ShuffleBlock):
            chosen.append(False)
            strides = [m.stride[0] for m in block.modules() if isinstance(m, nn.Conv2d)]
            h, w = (-(-size // max(strides, default=1)) for size in (h, w))
            continue
        channels = conv_norm_acts(block)[0].conv.in_channels * (2 if block.stride == 1 else 1)
        key = (
            f"{mode} {_name(block)} stride {block.stride}, {channels} channels, "
            f"{size_class(n * h * w)} pixels, {x.dtype}, {torch.get_num_threads()} threads"
        )
        shape = (n, channels, h, w)
        chosen.append(autotune.use_ops(key, partial(_ways, block, shape, x.dtype, mode, run)))
        h, w = -(-h // block.stride), -(-w // block.stride)
    return chosen


def _name(block: ShuffleBlock) -> str:
    return block.op if block.expansion == 1 else f"{block.op}_e{block.expansion}"


def _ways(
    block: ShuffleBlock, shape: tuple[int, ...], dtype: torch.dtype, mode: str, run: Run
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Another block of the class through the operators and through its modules."""
    channels = shape[1]
    main = conv_norm_acts(block)[: len(block.main)]
    out = main[-1].conv.out_channels + (channels // 2 if block.stride == 1 else channels)
    with torch.random.fork_rng(devices=[]):
        block = ShuffleBlock(
            channels, out, op=block.op, stride=block.stride, norm=nn.BatchNorm2d,
            shuffle_method=block.shuffle_method, expansion=block.expansion,
        ).to(main[0].conv.weight.dtype).train(mode != "evaluation")  # fmt: skip
    x = torch.rand(shape, dtype=torch.float32, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    if mode != "training":
        return torch.no_grad()(lambda: run(block, x)), torch.no_grad()(lambda: block(x))
    x.requires_grad_()
    grad = torch.ones_like(block(x))

    def step(f: Callable[[Tensor], Tensor]) -> None:
        f(x).backward(grad)

    return lambda: step(lambda x: run(block, x)), lambda: step(block)
