"""Layers with their BatchNorm pending: what chains of shuffle blocks and mixtures share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detnas_d2 import ops
from detnas_d2.layers.batch_norm_mode import StatsHook
from detnas_d2.layers.batch_statistics import BatchNorms, over_ranks
from detnas_d2.layers.conv import ConvNormAct
from detnas_d2.layers.folded_norm import norm_of
from detnas_d2.layers.norm import SyncBatchNorm
from detnas_d2.ops.registration import autocast_dtype, takes
from detnas_d2.utils.compat import has_global_hook, is_any_autocast_enabled, multiplies_bfloat16

# What can be folded into an affine map; a subclass may compute anything.
NORMS: frozenset[type] = frozenset((nn.BatchNorm2d, nn.SyncBatchNorm, SyncBatchNorm))
_OWN_HOOKS: frozenset[type] = frozenset((StatsHook,))


class Pending(NamedTuple):
    """A map with an affine map and ReLU that its reader applies."""

    x: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None
    relu: bool = False


def can_fuse_layers(modules: Sequence[nn.Module], layers: Sequence[ConvNormAct], x: Tensor) -> bool:
    """Whether modules made of ``layers`` can run through the operators: convolutions and BatchNorms
    of PyTorch only, nothing hooked in, an input that the compiled operators take, no tracing (which
    counts the modules' work), neither torch.func nor forward-mode differentiation, and no
    :func:`native_bfloat16`."""
    if not takes(x) or x.numel() == 0 or native_bfloat16(x):
        return False
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or has_global_hook():
        return False
    # nn.Module's own lookup of attributes is slow.
    parts: list[Mapping[str, Any]] = [layer._modules for layer in layers]
    convs, norms = [own["conv"] for own in parts], [own["norm"] for own in parts]
    # A parametrized convolution is of another class too, and has no weight of its own, which those
    # of DataParallel's replicas and of FSDP lack too.
    if not {nn.Conv2d}.issuperset(map(type, convs)) or not NORMS.issuperset(map(type, norms)):
        return False
    for conv, norm in zip(convs, norms, strict=True):
        if "weight" not in conv._parameters:
            return False
        if norm._buffers["running_mean"] is None or norm._parameters.get("weight") is None:
            return False
    return not any_hooked(chain(modules, layers, convs, norms))


def values_alone() -> bool:
    """Whether a forward pass is for its values: no gradients are recorded, nothing traces or
    compiles it, no autocast, and no hook is set for all modules.
    """
    if torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    return not has_global_hook() and not is_any_autocast_enabled()


def native_bfloat16(x: Tensor) -> bool:
    """Whether modules compute with ``x`` in bfloat16, under autocast on a CPU that can.

    The operators' CPU kernels do not: they read bfloat16 and compute in float32, as every kernel
    has to on CPUs without such instructions, where they stay the faster way.
    """
    return x.is_cpu and autocast_dtype(x) == torch.bfloat16 and multiplies_bfloat16()


def hooked(module: nn.Module) -> bool:
    """Whether something is to run with the module that the operators would leave out."""
    return any_hooked((module,))


def any_hooked(modules: Iterable[nn.Module]) -> bool:
    """Whether one of the modules is :func:`hooked`."""
    for module in modules:
        own = module.__dict__  # hundreds of modules at every forward pass: nothing is faster
        if own["_forward_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
            return True
        if "forward" in own:  # replaced in this module alone
            return True
        pre_hooks = own["_forward_pre_hooks"]
        if pre_hooks and not _OWN_HOOKS.issuperset(map(type, pre_hooks.values())):
            return True
    return False


def conv_norm(layer: ConvNormAct, p: Pending, norms: BatchNorms) -> Pending:
    """The raw output of the layer's convolution, its norm, one of ``norms``, and ReLU pending."""
    conv, norm = layer.conv, norm_of(layer)
    if over_ranks(norm):  # statistics are merged before they make an affine map
        return with_norm(layer, *_with_stats(conv, p), norms)
    args = (p.x, conv.weight, p.scale, p.shift, p.relu, conv.bias)
    own = (norm.weight, norm.bias, norm.eps, norms.batches)
    if conv.kernel_size == (1, 1):
        y, stats, scale, shift = ops.pointwise_conv_bn(*args, conv.groups, *own)
    elif conv.groups == conv.in_channels > 1:
        stride, dilation = conv.stride[0], conv.dilation[0]
        y, stats, scale, shift = ops.depthwise_conv_bn(*args, stride, dilation, *own)
    else:
        x = p.x.contiguous(memory_format=torch.channels_last)
        y = by_batch(partial(_stem, conv), x, norms.batches)
        stats, scale, shift = ops.bn_stats_fold(y, None, None, False, *own)
    norms.consume(norm, stats, _pixels(y) // norms.batches)
    return Pending(y, scale, shift, layer.relu)


def by_batch(module: Callable[[Tensor], Tensor], x: Tensor, batches: int) -> Tensor:
    """The module's outputs for ``batches`` of one size, which ``x`` has one after the other.

    Not all at once: a convolution of PyTorch's may round otherwise in a larger batch, and a
    BatchNorm would normalise all images alike.
    """
    return module(x) if batches == 1 else torch.cat([module(part) for part in x.chunk(batches)])


def _with_stats(conv: nn.Conv2d, p: Pending) -> tuple[Tensor, ops.BNStats]:
    args = (p.x, conv.weight, p.scale, p.shift, p.relu, conv.bias, False, True)
    if conv.kernel_size == (1, 1):
        y, stats = ops.pointwise_conv(*args, groups=conv.groups)
    elif conv.groups == conv.in_channels > 1:
        y, stats = ops.depthwise_conv(*args, stride=conv.stride[0], dilation=conv.dilation[0])
    else:
        y = _stem(conv, p.x)
        stats = ops.bn_stats(y)
    assert stats is not None
    return y, stats


def _stem(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution of an image."""
    x = x.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation)


def _pixels(y: Tensor) -> int:
    return y.shape[0] * y.shape[2] * y.shape[3]


def with_norm(layer: ConvNormAct, y: Tensor, stats: ops.BNStats, norms: BatchNorms) -> Pending:
    """What the layer's convolution left, whose statistics are these, its norm and ReLU pending."""
    return Pending(y, *norms.affine(norm_of(layer), stats, _pixels(y)), layer.relu)
