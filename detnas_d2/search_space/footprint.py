"""What paths hold in memory while they run, and what they put into an exported file, by layer.

Memory is a working set, as for microcontrollers (MCUNet, arXiv 2007.10319): while a convolution
runs, the map that it reads, the one that it writes and the input of its block are there; the most
of any convolution of a path counts. A runtime holds more, by what it leaves alive and lays out
anew, but follows the same order. It is no sum over layers but a maximum.

A file holds the weights of convolutions, in float32, with every BatchNorm folded into a bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from detnas_d2.layers import ConvNormAct, get_norm
from detnas_d2.search_space.additive import AdditiveTable, PeakTable
from detnas_d2.search_space.hit_costs import ROI_SIZE, is_region_layer, layer_sizes
from detnas_d2.search_space.latency import layer_blocks, searched_layers
from detnas_d2.search_space.space import PathSpace, SearchSpace

_BYTES = 4  # of a float32


@dataclass(frozen=True)
class Footprints:
    """Bytes of the paths of a space, of one image."""

    memory: PeakTable[int]
    file: AdditiveTable[int]


def footprints(
    space: PathSpace,
    input_size: tuple[int, int],
    *,
    regions: int = 1000,
    region: int = ROI_SIZE,
) -> Footprints:
    """The tables of a space's paths, from shapes alone.

    Args:
        space: of DetNAS, or of a Hit-Detector at one number of channels, whose searchable layers
            count.
        input_size: (height, width) of the image.
        regions: that layers of a two-stage head see; ``region``: their height and width.

    Raises:
        ValueError: the channels of the neck are searched.
    """
    norm = partial(get_norm, "BN")
    memory, files = [], []
    base_memory = base_file = 0
    with torch.device("meta"):
        if isinstance(space, SearchSpace):
            stem = ConvNormAct(3, space.stem_channels, 3, norm=norm, stride=2, bias=True)
            base_memory, base_file = _held(stem, torch.empty(1, 3, *input_size)), _written(stem)
        for part, layer in searched_layers(space):
            of_regions = is_region_layer(part, layer)
            batch = regions if of_regions else 1
            # The subnets of a one-stage head for classes and for boxes are alike.
            copies = 2 if part == "head" and not of_regions else 1
            shapes = layer_sizes(part, layer, input_size, region)
            inputs = [torch.empty(batch, layer.in_channels, *shape) for shape in shapes]
            blocks = layer_blocks(part, layer, norm)
            memory.append(tuple(max(_held(block, x) for x in inputs) for block in blocks))
            files.append(tuple(copies * _written(block) for block in blocks))
    return Footprints(PeakTable(base_memory, tuple(memory)), AdditiveTable(base_file, tuple(files)))


@torch.no_grad()
def _held(block: nn.Module, x: Tensor) -> int:
    """Bytes that are there at once while a block runs, at most."""
    most = [_bytes(x)]

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        (own,) = inputs
        kept = 0 if own is x else _bytes(x)
        most.append(kept + _bytes(own) + _bytes(output))

    with ExitStack() as hooks:
        for module in _convolutions(block):
            hooks.callback(module.register_forward_hook(look).remove)
        y = block.eval()(x)
    return max(*most, _bytes(x) + (0 if y is x else _bytes(y)))


def _written(block: nn.Module) -> int:
    """Bytes of a block's weights in a file: a convolution's, and a bias for its outputs."""
    return sum(_BYTES * (conv.weight.numel() + conv.out_channels) for conv in _convolutions(block))


def _convolutions(block: nn.Module) -> Iterator[nn.Conv2d]:
    return (module for module in block.modules() if isinstance(module, nn.Conv2d))


def _bytes(x: Tensor) -> int:
    return _BYTES * x.numel()
