from detnas_d2.layers.conv import ConvNormAct, NormFactory
from detnas_d2.layers.norm import NORMS, SyncBatchNorm, get_norm
from detnas_d2.layers.shuffle_block import SHUFFLE_METHODS, ShuffleBlock, shuffle_split

__all__ = [
    "NORMS",
    "SHUFFLE_METHODS",
    "ConvNormAct",
    "NormFactory",
    "ShuffleBlock",
    "SyncBatchNorm",
    "get_norm",
    "shuffle_split",
]
