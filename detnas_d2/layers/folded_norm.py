"""Blocks in evaluation: every block one operator, BatchNorms folded into weights and biases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detnas_d2 import ops
from detnas_d2.layers.conv import ConvNormAct
from detnas_d2.layers.kept_weights import staying
from detnas_d2.layers.shuffle_block import ShuffleBlock
from detnas_d2.ops.extension import has_extension
from detnas_d2.ops.registration import autocast_dtype, lower, operator
from detnas_d2.ops.shuffle_block import PackedBlock, out_methods, shuffle_blocks, takes_packed

_is_cpu = attrgetter("is_cpu")
if has_extension():
    _digest = operator("digest")


def norm_of(layer: ConvNormAct) -> _BatchNorm:
    """The BatchNorm of a layer that has one; nn.Module's own lookup of attributes is slow."""
    parts: Mapping[str, Any] = layer._modules
    return parts["norm"]


def conv_norm_acts(module: ConvNormAct | ShuffleBlock) -> list[ConvNormAct]:
    """The layers of a block: main branch, then projection; a layer is its own."""
    if isinstance(module, ConvNormAct):
        return [module]
    parts: Mapping[str, Any] = module._modules  # nn.Module's own lookup of attributes is slow
    layers = list(parts["main"]._modules.values())
    projection = parts.get("projection")
    if projection is not None:
        layers += projection._modules.values()
    return layers


def kernel_of(block: ShuffleBlock) -> int:
    """The block's kernel size as the operators of blocks want it; 0 is xception."""
    return 0 if block.op == "xception" else int(block.op[0])


class Folded:
    """Weights and biases of convolutions with BatchNorms folded in.

    Attributes:
        weights, biases: one of each per convolution.
    """

    def __init__(self, weights: list[Tensor], biases: list[Tensor]) -> None:
        self.weights, self.biases = weights, biases
        self._copies: dict[torch.dtype, Folded] = {}
        self._packed: dict[int, list[Tensor]] = {}

    def packed(self, kernel: int, stride: int, out_method: int) -> list[Tensor]:
        """The weights of a block as its kernels read them, kept."""
        if out_method not in self._packed:
            self._packed[out_method] = ops.pack_shuffle_block(
                self.weights, kernel, stride, out_method
            )
        return self._packed[out_method]

    def under_autocast(self, x: Tensor) -> Folded:
        """What autocast makes of them where ``x`` is: copies that are kept, or themselves."""
        dtype = autocast_dtype(x)
        if dtype is None:
            return self
        if dtype not in self._copies:
            lowered = ([lower(t, dtype) for t in ts] for ts in (self.weights, self.biases))
            self._copies[dtype] = Folded(*lowered)
        return self._copies[dtype]


def folded(module: ConvNormAct | ShuffleBlock) -> Folded:
    """:func:`folded_each` of one module."""
    (found,) = folded_each([module])
    return found


def folded_each(modules: Sequence[ConvNormAct | ShuffleBlock]) -> list[Folded]:
    """Modules' convolutions with the running statistics of their BatchNorms folded in.

    Kept with a module while what they are made of stays the same. On the CPU that is looked up
    in the values, so that every change is followed, writes through ``.data`` too, but within
    :func:`~detnas_d2.layers.kept_weights.weights_stay`. On other devices
    it follows from the tensors' versions: a write through ``.data`` is followed from the next
    ``train()``, ``eval()``, ``load_state_dict()`` or ``to()`` of the module on, and tensors made
    under inference_mode, which count no writes, are folded at every call.
    """
    layers = list(map(conv_norm_acts, modules))
    sources = list(map(_sources, layers))
    blocks = list(map(staying, modules))
    found: list[Folded | None] = [
        None if block is None else block.find(module, source[0])
        for block, module, source in zip(blocks, modules, sources, strict=True)
    ]
    new = [i for i, one in enumerate(found) if one is None]
    marks = _marks([sources[i][0] for i in new])
    for i, mark in zip(new, marks, strict=True):
        found[i] = own = _looked_up(modules[i], layers[i], *sources[i], mark)
        block, tensors = blocks[i], sources[i][0]
        if block is not None and all(map(_is_cpu, tensors)):
            packed_too = 2 * sum(t.nbytes for t in own.weights)
            block.keep(own, packed_too, modules[i], tensors)
    return found  # type: ignore[return-value]


def _sources(layers: list[ConvNormAct]) -> tuple[list[Tensor], list[float]]:
    """What a module's folded weights are made of: tensors and the epsilons of BatchNorms."""
    tensors: list[Any] = []
    epsilons = []
    for layer in layers:
        modules: Mapping[str, Any] = layer._modules
        conv, norm = modules["conv"]._parameters, modules["norm"]
        affine, running = norm._parameters, norm._buffers
        tensors += (
            conv["weight"], affine["weight"], affine["bias"],
            running["running_mean"], running["running_var"],
        )  # fmt: skip
        if conv["bias"] is not None:
            tensors.append(conv["bias"])
        epsilons.append(norm.eps)
    return tensors, epsilons


def _looked_up(
    module: nn.Module,
    layers: list[ConvNormAct],
    tensors: list[Tensor],
    epsilons: list[float],
    mark: object,
) -> Folded:
    """What is kept with the module if it was made of what ``mark`` tells, or else a new one."""
    key = (mark, epsilons)
    kept = module.__dict__.get("_folded")
    if mark is not None and kept is not None and kept[0] == key:
        return kept[1]
    with torch.no_grad():
        found = Folded(*map(list, zip(*map(_fold, layers), strict=True)))
    if mark is not None:  # the tensors are held too: none of their ids can be given to another
        module.__dict__["_folded"] = (key, found, tensors)
    return found


def _marks(groups: list[list[Tensor]]) -> list[Any]:
    """What tells the values of each group of tensors; None where nothing does."""
    if not groups:
        return []
    together = list(chain.from_iterable(groups))
    if together[0].is_cpu:
        try:
            return _digest(together, list(map(len, groups)))
        except NotImplementedError:  # not all are on the CPU
            if len(groups) > 1:
                return [mark for group in groups for mark in _marks([group])]
    return list(map(_versions, groups))


def _versions(tensors: list[Tensor]) -> object:
    if any(t.is_inference() for t in tensors):
        return None
    return [(id(t), t.data_ptr(), t._version) for t in tensors]


def kept_folds(modules: Iterable[nn.Module]) -> list[object]:
    """What :func:`folded` keeps with these modules: while it is held, so are the tensors in it."""
    return [kept for module in modules if (kept := module.__dict__.get("_folded")) is not None]


def _fold(layer: ConvNormAct) -> tuple[Tensor, Tensor]:
    parts: Mapping[str, Any] = layer._modules
    conv, norm = parts["conv"], parts["norm"]
    own = (norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    return fold(conv.weight, conv.bias, *own)


def fold(
    weight: Tensor, conv_bias: Tensor | None, gamma: Tensor, beta: Tensor, mean: Tensor,
    var: Tensor, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Weight and bias of a convolution with the BatchNorm that follows folded in."""
    scale = gamma * torch.rsqrt(var + eps)
    bias = beta - mean * scale
    if conv_bias is not None:
        bias = bias + conv_bias * scale
    return weight * scale.view(-1, 1, 1, 1), bias


def eval_layer(layer: ConvNormAct, x: Tensor) -> Tensor:
    """``layer(x)`` in evaluation, one convolution."""
    kept = folded(layer).under_autocast(x)
    (weight,), (bias,) = kept.weights, kept.biases
    conv = layer.conv
    y = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return F.relu_(y) if layer.relu else y


def eval_block(block: ShuffleBlock, x: Tensor, kept: Folded | None = None) -> Tensor:
    """``block(x)`` in evaluation, one operator.

    Args:
        kept: of :func:`folded`, where that was called.
    """
    kept = folded(block) if kept is None else kept
    own = kept.under_autocast(x)
    args = (x, own.weights, kept.biases)  # biases are added before anything is rounded
    options = (kernel_of(block), block.stride, block.shuffle_method)
    packed = own.packed(*options[:2], 0) if takes_packed(x) else None
    y = ops.shuffle_block(*args, *options, packed)
    assert isinstance(y, Tensor)
    return y


def eval_blocks(blocks: Sequence[ShuffleBlock], x: Tensor, ends: Sequence[int]) -> list[Tensor]:
    """Outputs after the first ``ends`` of the blocks in evaluation; the last of these is all."""
    every = folded_each(blocks)
    if takes_packed(x):
        packed = []
        strides, methods = [b.stride for b in blocks], [b.shuffle_method for b in blocks]
        out = out_methods(strides, methods, ends)
        for block, kept, out_method in zip(blocks, every, out, strict=True):
            own, options = kept.under_autocast(x), (kernel_of(block), block.stride)
            lists = (own.weights, own.packed(*options, out_method), kept.biases)
            packed.append(PackedBlock(*lists, *options, block.shuffle_method))
        return shuffle_blocks(x, packed, ends)
    outputs = []
    for block, kept in zip(blocks, every, strict=True):
        x = eval_block(block, x, kept)
        outputs.append(x)
    return [outputs[end - 1] for end in ends]
