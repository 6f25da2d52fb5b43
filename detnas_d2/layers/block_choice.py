"""Blocks through the operators or through their modules, whichever is right and faster here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from detnas_d2.layers.folded_norm import conv_norm_acts
from detnas_d2.layers.fused_ops import by_batch
from detnas_d2.layers.shuffle_block import ShuffleBlock
from detnas_d2.ops.autotune import AutotuneCache, Trial, device_text, size_class
from detnas_d2.ops.self_check import Verdict, compare, most_agree, results

Run = Callable[..., Tensor]
"""Runs blocks one after the other through the operators: run(blocks, x), for statistics also with
the number of ``batches`` that x has."""

_BATCHES = 2  # of recalibration, which may run several together, in a check
_CHECKED_PIXELS = 1024  # fewer leave little but rounding in 16 bits; more take memory in float64


def choose(
    autotune: AutotuneCache, blocks: Sequence[nn.Module], x: Tensor, mode: str, run: Run
) -> list[bool]:
    """For every block of a chain whether the operators are to run it.

    A class is one kind of block, its channels, its number of pixels up to the next power of two,
    dtype, mode and device. It is tried out on a new block of it with random weights: compared with
    its modules in float64 together with a block that follows, since neighbours hand over halves,
    then timed. The chain's blocks and the random generators are left alone.

    Args:
        blocks: others than shuffle blocks are their modules' to run.
        x: (N, C, H, W), the first block's input; only its shape, dtype and device count.
        mode: "training" (forward and backward, with batch statistics), "statistics" or
            "evaluation".
        run: runs blocks through the operators in this mode.
    """
    n, _, h, w = x.shape
    chosen = []
    for block in blocks:
        if not isinstance(block, ShuffleBlock):
            chosen.append(False)
            strides = [m.stride[0] for m in block.modules() if isinstance(m, nn.Conv2d)]
            h, w = (-(-size // max(strides, default=1)) for size in (h, w))
            continue
        pixels = size_class(n * h * w)
        asked = (mode, pixels, x.dtype, x.device, torch.get_num_threads())
        known = autotune.known.setdefault(block, {})
        if asked not in known:
            channels = conv_norm_acts(block)[0].conv.in_channels * (2 if block.stride == 1 else 1)
            key = (
                f"{mode} {_name(block)} stride {block.stride}, {channels} channels, "
                f"{pixels} pixels, {x.dtype}, {device_text(x.device)}"
            )
            like = torch.empty((n, channels, h, w), dtype=x.dtype, device="meta")
            trial = partial(_trial, block, like, x.device, mode, run)
            known[asked] = autotune.use_ops(key, trial)
        chosen.append(known[asked])
        h, w = -(-h // block.stride), -(-w // block.stride)
    return chosen


def _name(block: ShuffleBlock) -> str:
    return block.op if block.expansion == 1 else f"{block.op}_e{block.expansion}"


def _trial(block: ShuffleBlock, like: Tensor, device: torch.device, mode: str, run: Run) -> Trial:
    """Another block of the class through the operators and through its modules.

    Args:
        like: shape and dtype of its input.
    """
    generator = torch.Generator().manual_seed(0)
    channels = like.shape[1]
    weights = conv_norm_acts(block)[0].conv.weight.dtype
    out = conv_norm_acts(block)[len(block.main) - 1].conv.out_channels
    out += channels // 2 if block.stride == 1 else channels
    blocks = [
        _another(block, channels, out, block.stride, generator),
        _another(block, out, out, 1, generator),
    ]
    for made in blocks:
        made.to(device, weights).train(mode != "evaluation")

    def drawn(images: int) -> Tensor:
        shape = (images, *like.shape[1:])
        return torch.randn(shape, generator=generator).to(device, like.dtype)

    pixels = like.shape[2] * like.shape[3]
    images = _BATCHES * -(-_CHECKED_PIXELS // (_BATCHES * pixels))
    checked, x = drawn(images), drawn(like.shape[0])
    # Each way gets the layout that it has in a network: on GPUs modules mostly see NCHW.
    ours = x.contiguous(memory_format=torch.channels_last)
    theirs = ours if device.type == "cpu" else x
    return Trial(
        operators=partial(_once, partial(run, blocks[:1]), ours, mode),
        modules=partial(_once, blocks[0], theirs, mode),
        check=lambda: most_agree(
            lambda number: _check(blocks, drawn(images) if number else checked, mode, run)
        ),
        device=str(device),
    )


def _another(
    block: ShuffleBlock, channels: int, out: int, stride: int, generator: torch.Generator
) -> ShuffleBlock:
    """A block of the same kind, with random weights, affine maps and running statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.random.set_rng_state(generator.get_state())
        made = ShuffleBlock(
            channels, out, op=block.op, stride=stride, norm=nn.BatchNorm2d,
            shuffle_method=block.shuffle_method, expansion=block.expansion,
        )  # fmt: skip
        for norm in made.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, std=0.1)
                assert norm.running_mean is not None and norm.running_var is not None
                norm.running_mean.normal_(std=0.1)
                norm.running_var.uniform_(0.5, 1.5)
        generator.set_state(torch.random.get_rng_state())
    return made


def _once(forward: Callable[[Tensor], Tensor], x: Tensor, mode: str) -> Tensor:
    if mode != "training":
        with torch.no_grad():
            return forward(x)
    y = forward(x.detach().requires_grad_())
    y.backward(y.detach())
    return y


def _check(blocks: list[ShuffleBlock], x: Tensor, mode: str, run: Run) -> Verdict:
    """Compares outputs, running statistics and gradients of two blocks in a row."""
    chain = copy.deepcopy(blocks)
    modules = nn.Sequential(*copy.deepcopy(blocks))
    exact = copy.deepcopy(modules).double()
    batches = _BATCHES if mode == "statistics" else 1
    options, trains = {"batches": batches} if batches > 1 else {}, mode == "training"
    found = results(partial(run, chain, **options), nn.Sequential(*chain), x, trains)
    trusted = results(partial(by_batch, modules, batches=batches), modules, x, trains)
    with torch.autocast(x.device.type, enabled=False):
        truth = results(partial(by_batch, exact, batches=batches), exact, x, trains, torch.float64)
    return compare(found, trusted, truth, trusted["output"].dtype)
