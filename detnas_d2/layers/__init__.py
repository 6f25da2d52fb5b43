from detnas_d2.layers.conv import ConvNormAct, NormFactory
from detnas_d2.layers.inverted_residual import InvertedResidual
from detnas_d2.layers.norm import NORMS, SyncBatchNorm, get_norm
from detnas_d2.layers.separable_conv import SeparableConv
from detnas_d2.layers.shuffle_block import SHUFFLE_METHODS, ShuffleBlock, shuffle_split

__all__ = [
    "NORMS",
    "SHUFFLE_METHODS",
    "ConvNormAct",
    "InvertedResidual",
    "NormFactory",
    "SeparableConv",
    "ShuffleBlock",
    "SyncBatchNorm",
    "get_norm",
    "shuffle_split",
]
