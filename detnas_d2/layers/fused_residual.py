"""Mixtures of inverted residuals and separable convolutions through ``detnas_d2.ops``.

What the modules compute, but for rounding, with statistics of the batch: a candidate's convolutions
leave raw outputs with BatchNorms pending (see ``fused_ops``), the depthwise convolutions of all
candidates are one call, and the weighted sum applies the last BatchNorms in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detnas_d2 import ops
from detnas_d2.layers.batch_norm_mode import uses_batch_statistics
from detnas_d2.layers.batch_statistics import BatchNorms
from detnas_d2.layers.conv import ConvNormAct
from detnas_d2.layers.folded_norm import norm_of
from detnas_d2.layers.fused_ops import Pending, can_fuse_layers, conv_norm, with_norm
from detnas_d2.layers.inverted_residual import InvertedResidual
from detnas_d2.layers.separable_conv import SeparableConv

KERNELS = (3, 5, 7)


def can_fuse_mixture(modules: Sequence[nn.Module], x: Tensor) -> bool:
    """Whether :func:`mixture` can stand in for them: see ``fused_ops.can_fuse_layers``.

    Not on the meta device, where work is counted and the modules are what is counted.
    """
    if not modules or x.is_meta or torch.is_autocast_enabled(x.device.type):
        return False
    layers = [layer for module in modules for layer in _layers(module)]
    return all(_fits(m) for m in modules) and can_fuse_layers([*modules, *layers], layers, x)


def _layers(module: nn.Module) -> list[ConvNormAct]:
    if isinstance(module, InvertedResidual):
        return [module.expand, module.depthwise, module.project]
    return [module.depthwise, module.project] if isinstance(module, SeparableConv) else []


def _fits(module: nn.Module) -> bool:
    if not isinstance(module, (InvertedResidual, SeparableConv)) or not module.training:
        return False
    if type(module) not in (InvertedResidual, SeparableConv):  # a subclass may compute anything
        return False
    conv = module.depthwise.conv
    return (
        getattr(module, "groups", 1) == 1
        and conv.bias is None
        and conv.kernel_size[0] in KERNELS
        and conv.dilation[0] <= 3
        and all(uses_batch_statistics(norm_of(layer)) for layer in _layers(module))
    )


def mixture(modules: Sequence[nn.Module], x: Tensor, weights: Tensor) -> Tensor:
    """sum_i weights[i] * modules[i](x), (N, C, H, W) channels_last.

    Args:
        modules: those that :func:`can_fuse_mixture` accepts, with outputs of one shape.
        weights: (number of modules,).
    """
    x = x.contiguous(memory_format=torch.channels_last)
    norms = BatchNorms()
    fitting = [m for m in modules if isinstance(m, (InvertedResidual, SeparableConv))]  # all
    inputs = [
        conv_norm(m.expand, Pending(x), norms) if isinstance(m, InvertedResidual) else Pending(x)
        for m in fitting
    ]
    found: dict[int, Pending] = {}
    for fresh in (False, True):  # inverted residuals have a BatchNorm pending, the others have not
        chosen = [i for i, p in enumerate(inputs) if (p.scale is None) == fresh]
        for i, middle in zip(chosen, _depthwise(fitting, inputs, chosen, norms), strict=True):
            found[i] = conv_norm(fitting[i].project, middle, norms)
    norms.update()
    outputs = [found[i] for i in range(len(modules))]
    residual = [i for i, m in enumerate(fitting) if m.residual]
    return ops.mixed_sum(
        [p.x for p in outputs],
        [p.scale for p in outputs if p.scale is not None],
        [p.shift for p in outputs if p.shift is not None],
        weights,
        x * weights[residual].sum() if residual else None,
    )


def _depthwise(
    modules: Sequence[InvertedResidual | SeparableConv],
    inputs: Sequence[Pending],
    chosen: Sequence[int],
    norms: BatchNorms,
) -> list[Pending]:
    """The depthwise layers of the modules ``chosen``, whose inputs are alike, in one call."""
    if not chosen:
        return []
    layers = [modules[i].depthwise for i in chosen]
    maps = [inputs[i] for i in chosen]
    ys, stats = ops.mixed_depthwise(
        [p.x for p in maps],
        [layer.conv.weight for layer in layers],
        [p.scale for p in maps if p.scale is not None],  # of all or of none
        [p.shift for p in maps if p.shift is not None],
        maps[0].relu,
        True,
        layers[0].conv.stride[0],
        [layer.conv.dilation[0] for layer in layers],
    )
    return [
        with_norm(layer, y, s, norms)
        for y, s, layer in zip(ys, stats, layers, strict=True)
        if s is not None
    ]
