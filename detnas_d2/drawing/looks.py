"""How an operation looks: kernel, colour, label, words."""

from __future__ import annotations

from dataclasses import dataclass

from detnas_d2.search_space.operations import get_operation
from detnas_d2.search_space.shuffle_ops import shuffle_op
from detnas_d2.search_space.space import SKIP, LayerSpec

# Told apart by people with any kind of colour vision, with black text on them. As in the paper,
# 3x3 is blue, Xception a larger blue block, and what is larger than 3x3 yellow to orange.
COLOURS = {1: "#a5dbbd", 3: "#86b6f2", 5: "#f6d55c", 7: "#f08a4b"}
XCEPTION = "xception"
_KINDS = {"ir": "inverted residual", "sep": "separable convolution", "conv": "convolution"}


@dataclass(frozen=True)
class Look:
    """What a drawing shows of an operation.

    Args:
        name: the operation's name in texts.
        kernel: side of its spatial kernel, 0 for ``skip``.
        label: text that is short enough for a box.
        words: text for a tooltip and for screen readers.
        expansion: middle channels in units of the base operation's.
        is_block: a block of ShuffleNetV2; else an operation of Hit-Detector's table.
    """

    name: str
    kernel: int
    label: str
    words: str
    expansion: int = 1
    is_block: bool = False

    @property
    def is_skip(self) -> bool:
        return self.kernel == 0

    @property
    def is_xception(self) -> bool:
        return self.is_block and self.label == "X"

    @property
    def colour(self) -> str:
        return COLOURS.get(self.kernel, COLOURS[1])


def look_of(op: str, *, same_shape: bool = True) -> Look:
    """The look of the operation called ``op``, of either family.

    Args:
        same_shape: the layer keeps channels and size; where it does not, ``skip`` is a 1x1
            convolution.

    Raises:
        OperationError: no such operation.
    """
    if op == SKIP and same_shape:
        return Look(op, 0, "skip", "skipped")
    if op == SKIP:
        return Look(op, 1, "skip k1", "skip by a 1x1 convolution, as the layer changes the shape")
    block = shuffle_op(op)
    if block is not None:
        wider = f", {block.expansion} times the middle channels" if block.expansion > 1 else ""
        if block.base == XCEPTION:
            words = f"Xception block of 3x3 kernels{wider}"
            return Look(op, 3, "X", words, block.expansion, is_block=True)
        kernel = int(block.base[0])
        words = f"block of {block.base} kernels{wider}"
        return Look(op, kernel, str(kernel), words, block.expansion, is_block=True)
    found = get_operation(op)
    label = [found.kind, f"k{found.kernel}"]
    words = f"{_KINDS[found.kind]}, {found.kernel}x{found.kernel}"
    if found.kind == "ir":
        label.append(f"e{found.expansion}")
        words += f", expansion {found.expansion}"
    if found.dilation > 1:
        label.append(f"d{found.dilation}")
        words += f", dilation {found.dilation}"
    if found.groups > 1:
        label.append(f"g{found.groups}")
        words += f", {found.groups} groups"
    return Look(op, found.kernel, " ".join(label), words, found.expansion)


def look_in(layer: LayerSpec, op: str) -> Look:
    """The look of an operation in a layer."""
    return look_of(op, same_shape=layer.stride == 1 and layer.in_channels == layer.out_channels)
