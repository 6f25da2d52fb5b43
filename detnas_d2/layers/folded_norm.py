"""Blocks in evaluation: every block one operator, BatchNorms folded into weights and biases."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detnas_d2 import ops
from detnas_d2.layers.conv import ConvNormAct
from detnas_d2.layers.shuffle_block import ShuffleBlock


def conv_norm_acts(module: nn.Module) -> list[ConvNormAct]:
    """The layers of a block: main branch, then projection; a layer is its own."""
    if isinstance(module, ConvNormAct):
        return [module]
    layers = list(module.main._modules.values())
    if module.projection is not None:
        layers += module.projection._modules.values()
    return layers


def kernel_of(block: ShuffleBlock) -> int:
    """The block's kernel size as the operators of blocks want it; 0 is xception."""
    return 0 if block.op == "xception" else int(block.op[0])


def folded(layer: ConvNormAct) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution with the running statistics folded in.

    Kept with the layer until a tensor it is made of is replaced or written to in place (writes
    through ``.data`` go unseen). Tensors made under inference_mode, which count no writes, are
    folded at every call.
    """
    conv, norm = layer._modules["conv"]._parameters, layer._modules["norm"]
    affine, running = norm._parameters, norm._buffers
    parts = (
        conv["weight"], conv["bias"], affine["weight"], affine["bias"],
        running["running_mean"], running["running_var"],
    )  # fmt: skip
    counted = not any(t.is_inference() for t in parts if t is not None)
    if counted:
        key = [(id(t), t.data_ptr(), t._version) for t in parts if t is not None]
        cached = layer.__dict__.get("_folded")
        if cached is not None and cached[0] == key:
            return cached[1]
    conv = layer.conv
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    bias = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    result = ((conv.weight * scale.view(-1, 1, 1, 1)).detach(), bias.detach())
    if counted:  # the tensors are held too: none of their ids can be given to another
        layer.__dict__["_folded"] = (key, result, parts)
    return result


def eval_layer(layer: ConvNormAct, x: Tensor) -> Tensor:
    """``layer(x)`` in evaluation, one convolution."""
    weight, bias = folded(layer)
    conv = layer.conv
    y = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return F.relu_(y) if layer.relu else y


def eval_block(block: ShuffleBlock, x: Tensor) -> Tensor:
    """``block(x)`` in evaluation, one operator."""
    weights, biases = zip(*map(folded, conv_norm_acts(block)), strict=True)
    return ops.shuffle_block(
        x, weights, biases, kernel_of(block), block.stride, block.shuffle_method
    )
