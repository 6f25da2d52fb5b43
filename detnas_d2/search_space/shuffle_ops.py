"""The operations of DetNAS's choice blocks: names, blocks, costs.

``3x3``, ``5x5``, ``7x7`` and ``xception`` are the paper's. With a suffix ``_e2`` to ``_e6`` the
middle channels of the main branch are that multiple of half the output channels. Beside them stand
the operations of Hit-Detector's table (``operations``), with the rules of its backbone, ``skip``
among them: in the layers of stride 1, where a space offers it, it is the identity.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from detnas_d2.layers import NormFactory, ShuffleBlock
from detnas_d2.search_space.counting import Cost, conv_cost
from detnas_d2.search_space.operations import (
    BODY_RULES,
    OperationError,
    build_operation,
    get_operation,
    operation_cost,
)
from detnas_d2.search_space.space import SHUFFLE_OPS, LayerSpec

EXPANSIONS = range(2, 7)
_NAME = re.compile(rf"({'|'.join(SHUFFLE_OPS)})(?:_e([{EXPANSIONS[0]}-{EXPANSIONS[-1]}]))?")


@dataclass(frozen=True)
class ShuffleOp:
    """The operation of a ShuffleNetV2 block.

    Args:
        base: one of ``SHUFFLE_OPS``.
        expansion: see :class:`detnas_d2.layers.ShuffleBlock`.
    """

    base: str
    expansion: int = 1


def shuffle_op(name: str) -> ShuffleOp | None:
    """The operation called ``name``, None if it is none of a ShuffleNetV2 block."""
    match = _NAME.fullmatch(name)
    return None if match is None else ShuffleOp(match[1], int(match[2] or 1))


def check_op(name: str) -> None:
    """Raises OperationError if no block of a DetNAS space can have the operation ``name``."""
    if shuffle_op(name) is not None:
        return
    try:
        get_operation(name)
    except OperationError:
        raise OperationError(
            f"no operation {name!r}; expected {', '.join(SHUFFLE_OPS)}, one of them with a suffix "
            f"_e{EXPANSIONS[0]} to _e{EXPANSIONS[-1]}, skip, or one of Hit-Detector's, e.g. "
            "ir_k3_e3_d1"
        ) from None


def build_block(layer: LayerSpec, op: str, norm: NormFactory, shuffle_method: int) -> nn.Module:
    """The block of candidate ``op`` in ``layer``; ``nn.Identity`` for ``skip``."""
    chosen = shuffle_op(op)
    if chosen is None:
        return build_operation(
            op,
            layer.in_channels,
            layer.out_channels,
            stride=layer.stride,
            norm=norm,
            rules=BODY_RULES,
        )
    return ShuffleBlock(
        layer.in_channels,
        layer.out_channels,
        op=chosen.base,
        stride=layer.stride,
        norm=norm,
        shuffle_method=shuffle_method,
        expansion=chosen.expansion,
    )


def block_cost(layer: LayerSpec, op: str, height: int, width: int) -> Cost:
    """Cost of candidate ``op`` in ``layer``.

    Args:
        height, width: size of the block's *input*.
    """
    cin, cout, stride = layer.in_channels, layer.out_channels, layer.stride
    chosen = shuffle_op(op)
    if chosen is None:
        return operation_cost(
            op, cin, cout, stride=stride, height=height, width=width, rules=BODY_RULES
        )
    out_h, out_w = -(-height // stride), -(-width // stride)
    mid = cout // 2 * chosen.expansion
    main_in = cin if stride == 2 else cin // 2
    main_out = cout - cin if stride == 2 else cout - cin // 2
    kernel = 3 if chosen.base == "xception" else int(chosen.base[0])
    if chosen.base == "xception":
        parts = []
        for channels, out in ((main_in, mid), (mid, mid), (mid, main_out)):
            parts.append(conv_cost(out_h, out_w, channels, channels, 3, channels))
            parts.append(conv_cost(out_h, out_w, channels, out))
    else:
        parts = [
            conv_cost(height, width, main_in, mid),
            conv_cost(out_h, out_w, mid, mid, kernel, mid),
            conv_cost(out_h, out_w, mid, main_out),
        ]
    if stride == 2:
        parts.append(conv_cost(out_h, out_w, cin, cin, kernel, cin))
        parts.append(conv_cost(out_h, out_w, cin, cin))
    return sum(parts, Cost())
