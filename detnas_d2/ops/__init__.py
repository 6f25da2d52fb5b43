"""Operators: compiled where ``detnas_d2._C`` is built, else their reference implementations.

Maps and weights are float32, bfloat16, float16 or, on the CPU, float64, of one dtype in a call.
Statistics and affine maps come out in float32, for float64 maps in float64. Under autocast the maps
and weights of products are cast.
"""

from detnas_d2.ops import flops  # noqa: F401  (registers formulas)
from detnas_d2.ops.bn_stats import BNStats, bn_fold, bn_stats, bn_stats_merge
from detnas_d2.ops.conv import depthwise_conv, mixed_depthwise, pointwise_conv
from detnas_d2.ops.conv3x3 import conv3x3, conv3x3_packed, pack_conv3x3
from detnas_d2.ops.conv_bn import bn_stats_fold, depthwise_conv_bn, pointwise_conv_bn
from detnas_d2.ops.extension import build_info, has_extension
from detnas_d2.ops.mixed_sum import mixed_sum
from detnas_d2.ops.roi_align import roi_align
from detnas_d2.ops.shuffle_block import pack_shuffle_block, shuffle_block
from detnas_d2.ops.shuffle_block_stats import shuffle_block_stats
from detnas_d2.ops.shuffle_block_training import shuffle_block_training
from detnas_d2.ops.shuffle_concat import shuffle_concat

__all__ = [
    "BNStats",
    "bn_fold",
    "bn_stats",
    "bn_stats_fold",
    "bn_stats_merge",
    "build_info",
    "conv3x3",
    "conv3x3_packed",
    "depthwise_conv",
    "depthwise_conv_bn",
    "has_extension",
    "mixed_depthwise",
    "mixed_sum",
    "pack_conv3x3",
    "pack_shuffle_block",
    "pointwise_conv",
    "pointwise_conv_bn",
    "roi_align",
    "shuffle_block",
    "shuffle_block_stats",
    "shuffle_block_training",
    "shuffle_concat",
]
