"""One layer of a hand-made detector replaced by an operation: Figure 3 of Hit-Detector.

``MODEL.HIT.REPLACED`` names the part, the operation and the layer of a Faster R-CNN with FPN on
ResNet-50 and four convolutions in the head. As in the authors' code a dense convolution
(``conv_...``) stands in the place of one convolution: the 3x3 of a bottleneck, of a pyramid level
or of the head; an inverted residual (``ir_...``) in the place of a whole bottleneck, or of such a
convolution and its ReLU. A replaced layer starts from random weights and, where the part has norms,
with a norm of its own that learns.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import fvcore.nn.weight_init as weight_init
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN, build_resnet_fpn_backbone
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from torch import nn

from detnas_d2.layers import get_norm
from detnas_d2.modeling.hit.backbone import init_convolutions
from detnas_d2.search_space.operations import (
    BODY_RULES,
    CANDIDATES,
    OperationError,
    build_operation,
    get_operation,
)

INFLUENCES: tuple[str, ...] = (
    *(op for op in CANDIDATES if op.startswith("conv_k")),
    *(f"ir_k{kernel}_e1_d{dilation}" for kernel in (3, 5) for dilation in (1, 2, 3)),
)
"""The 12 operations of Figure 3: dense convolutions and inverted residuals without expansion, of
kernels 3 and 5 and dilations 1 to 3, which is what the authors' code can put in."""


def replaced_layer(cfg: CfgNode, count: int) -> int:
    """Index of the replaced layer of ``count``; ``REPLACED.LAYER`` -1 draws one from ``SEED``."""
    node = cfg.MODEL.HIT.REPLACED
    layer = node.LAYER
    if layer >= count:
        raise OperationError(
            f"MODEL.HIT.REPLACED.LAYER {layer}: the {node.PART} has layers 0 to {count - 1}"
        )
    if layer >= 0:
        return layer
    return random.Random(f"replaced layer/{node.PART}/{cfg.SEED}").randrange(count)


def _operation_name(cfg: CfgNode) -> str:
    name = cfg.MODEL.HIT.REPLACED.OP
    if name not in INFLUENCES:
        raise OperationError(
            f"MODEL.HIT.REPLACED.OP {name!r}: expected one of {', '.join(INFLUENCES)}"
        )
    return name


def _dense(cfg: CfgNode, old: nn.Conv2d, *, norm: bool = False) -> Conv2d | None:
    """A convolution in the place of ``old``; None if the operation is an inverted residual."""
    op = get_operation(_operation_name(cfg))
    if op.kind != "conv":
        return None
    return Conv2d(
        old.in_channels,
        old.out_channels,
        op.kernel,
        stride=old.stride,
        padding=(op.kernel - 1) // 2 * op.dilation,
        dilation=op.dilation,
        bias=not norm,
        norm=get_norm(cfg.MODEL.HIT.NORM, old.out_channels) if norm else None,
    )


def _in_place_of(
    cfg: CfgNode,
    old: nn.Conv2d,
    fill: Callable[[nn.Module], None],
    activation: nn.Module | None = None,
) -> nn.Module:
    """The operation in the place of a convolution; ``fill`` and ``activation`` of a dense one."""
    new = _dense(cfg, old)
    if new is None:
        return _inverted_residual(cfg, old.out_channels)
    fill(new)
    new.activation = activation
    return new


def _inverted_residual(cfg: CfgNode, channels: int) -> nn.Module:
    """The operation on ``channels`` channels, at stride 1."""
    norm = partial(get_norm, cfg.MODEL.HIT.NORM)
    name = _operation_name(cfg)
    module = build_operation(name, channels, channels, stride=1, norm=norm, rules=BODY_RULES)
    init_convolutions(module)
    return module


def _replace_in_resnet(cfg: CfgNode, fpn: FPN) -> None:
    # Stages that learn; the first block of each changes channels and stays.
    body = fpn.bottom_up
    learning = body.stages[max(cfg.MODEL.BACKBONE.FREEZE_AT - 1, 0) :]
    places = [(stage, index) for stage in learning for index in range(1, len(stage))]
    stage, index = places[replaced_layer(cfg, len(places))]
    block = stage[index]
    if not isinstance(block, BottleneckBlock):
        raise OperationError("MODEL.HIT.REPLACED: a backbone layer is a bottleneck of a ResNet")
    conv = _dense(cfg, block.conv2, norm=True)
    if conv is None:
        stage[index] = _inverted_residual(cfg, block.out_channels)
        return
    weight_init.c2_msra_fill(conv)
    # Under a name that no pre-trained weight has.
    block.conv2 = nn.Sequential(OrderedDict(replaced=conv))


def _replace_in_fpn(cfg: CfgNode, fpn: FPN) -> None:
    layer = replaced_layer(cfg, len(fpn.output_convs))
    old = fpn.output_convs[layer]
    new = _in_place_of(cfg, old, weight_init.c2_xavier_fill)
    (name,) = [name for name, child in fpn.named_children() if child is old]
    setattr(fpn, name, new)
    fpn.output_convs[layer] = new


@BACKBONE_REGISTRY.register()
def build_replaced_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet with FPN, one layer of the backbone or neck replaced if REPLACED.PART says so."""
    fpn = build_resnet_fpn_backbone(cfg, input_shape)
    if cfg.MODEL.HIT.REPLACED.PART == "backbone":
        _replace_in_resnet(cfg, fpn)
    elif cfg.MODEL.HIT.REPLACED.PART == "neck":
        _replace_in_fpn(cfg, fpn)
    return fpn


@ROI_BOX_HEAD_REGISTRY.register()
def build_replaced_box_head(cfg: CfgNode, input_shape: ShapeSpec) -> FastRCNNConvFCHead:
    """Detectron2's head of convolutions, one of them replaced if REPLACED.PART says so."""
    head = FastRCNNConvFCHead(cfg, input_shape)
    if cfg.MODEL.HIT.REPLACED.PART == "head":
        layer = replaced_layer(cfg, len(head.conv_norm_relus))
        old = head.conv_norm_relus[layer]
        new = _in_place_of(cfg, old, weight_init.c2_msra_fill, nn.ReLU())
        setattr(head, f"conv{layer + 1}", new)
        head.conv_norm_relus[layer] = new
    return head
