"""Blocks of the candidates of DetNAS's spaces."""

from __future__ import annotations

from detnas_d2.layers import NormFactory, ShuffleBlock
from detnas_d2.search_space.space import LayerSpec


def build_shuffle_block(
    layer: LayerSpec, op: str, norm: NormFactory, shuffle_method: int
) -> ShuffleBlock:
    """The block of candidate ``op`` in ``layer``."""
    return ShuffleBlock(
        layer.in_channels,
        layer.out_channels,
        op=op,
        stride=layer.stride,
        norm=norm,
        shuffle_method=shuffle_method,
    )
