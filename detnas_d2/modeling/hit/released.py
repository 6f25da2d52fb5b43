"""Weights of the released Hit-Detector (an mmdetection 1.x checkpoint) as ours, strictly.

Names: released ``backbone.layers.N`` is our stem (0), layer N - 1 (1 to 20) and tail (21, 22);
``neck.SearchNeck.cells.N`` our neck layer N; ``bbox_head.SearchHead.cells.N`` our head layer N.
Inside a block ``conv1, conv2, conv3`` are expand, depthwise, project of an inverted residual and
``conv1, conv2`` depthwise, project of a separable convolution; ``bn`` is ``norm``.

Two things differ in content: the released classifier has the background first, Detectron2 last;
the released box regression has four numbers for the background too, which are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from detnas_d2.layers import ConvNormAct, InvertedResidual, SeparableConv
from detnas_d2.modeling.hit.backbone import HitBackbone
from detnas_d2.modeling.hit.box_head import HitBoxHead
from detnas_d2.modeling.hit.neck import HitPAFPN
from detnas_d2.modeling.searchable_layers import FixedLayers
from detnas_d2.modeling.weights_fit import WeightsError

_BLOCK_PARTS: dict[type[nn.Module], dict[str, str]] = {
    InvertedResidual: {"expand": "conv1", "depthwise": "conv2", "project": "conv3"},
    SeparableConv: {"depthwise": "conv1", "project": "conv2"},
}


def released_names(model: nn.Module) -> dict[str, str]:
    """Our state dict key -> released key, for every key of a searched detector.

    Args:
        model: GeneralizedRCNN of a Hit backbone, neck and head, or the backbone alone.

    Raises:
        WeightsError: a part of the model is not that of a decoded Hit-Detector.
    """
    names: dict[str, str] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, HitBackbone):
            root = "backbone." if path else ""
            names.update(_conv_names(f"{prefix}stem", f"{root}layers.0", module.stem))
            names.update(_layer_names(prefix, f"{root}layers", module.layers, offset=1))
            for i, block in enumerate(module.tail):
                number = 1 + len(module.layers) + i
                ours, theirs = f"{prefix}tail.{i}", f"{root}layers.{number}"
                names.update(_block_names(ours, theirs, block))
        elif isinstance(module, HitPAFPN):
            names.update(_layer_names(prefix, "neck.SearchNeck.cells", module.layers))
            for i in range(len(module.bottom_up_convs)):
                for leaf in ("weight", "bias"):
                    ours = f"{prefix}bottom_up_convs.{i}.{leaf}"
                    names[ours] = f"neck.pa_convs.{i}.conv.{leaf}"
        elif isinstance(module, HitBoxHead):
            names.update(_layer_names(prefix, "bbox_head.SearchHead.cells", module.layers))
            for leaf in ("weight", "bias"):
                names[f"{prefix}fc.{leaf}"] = f"bbox_head.shared_fcs.0.{leaf}"
    plain = {
        "proposal_generator.rpn_head.conv": "rpn_head.rpn_conv",
        "proposal_generator.rpn_head.objectness_logits": "rpn_head.rpn_cls",
        "proposal_generator.rpn_head.anchor_deltas": "rpn_head.rpn_reg",
        "roi_heads.box_predictor.cls_score": "bbox_head.fc_cls",
        "roi_heads.box_predictor.bbox_pred": "bbox_head.fc_reg",
    }
    state = model.state_dict()
    for ours, theirs in plain.items():
        for leaf in ("weight", "bias"):
            if f"{ours}.{leaf}" in state:
                names[f"{ours}.{leaf}"] = f"{theirs}.{leaf}"
    unknown = sorted(set(state) - set(names))
    if unknown:
        raise WeightsError(
            f"{len(unknown)} keys of the model have no released counterpart, e.g. {unknown[0]!r}: "
            "expected a searched Hit backbone, neck and box head with BatchNorm"
        )
    return names


def convert_released_hit(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state dict of ``model`` with the values of a released checkpoint.

    Args:
        state: the released ``state_dict``; a ``module.`` prefix is removed.
        model: the detector (or bare backbone) of the same genotype.

    Raises:
        WeightsError: keys missing, left over, or of another shape; names them all the same way.
    """
    source = {key.removeprefix("module."): value for key, value in state.items()}
    names = released_names(model)
    expected = model.state_dict()
    converted, problems = {}, []
    for ours, theirs in names.items():
        if theirs not in source:
            problems.append(f"missing {theirs}")
            continue
        value = _without_background(theirs, source[theirs])
        if value.shape != expected[ours].shape:
            problems.append(
                f"{theirs} gives {tuple(value.shape)}, expected {tuple(expected[ours].shape)}"
            )
        converted[ours] = value
    problems += [f"unexpected {key}" for key in sorted(set(source) - set(names.values()))]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise WeightsError(
            "not the released weights of this genotype: " + "; ".join(problems[:5]) + more
        )
    return converted


def _without_background(name: str, value: Tensor) -> Tensor:
    if name.startswith("bbox_head.fc_cls."):
        return torch.cat((value[1:], value[:1]))
    if name.startswith("bbox_head.fc_reg."):
        return value[4:].clone()
    return value


def _layer_names(prefix: str, root: str, layers: nn.Module, offset: int = 0) -> dict[str, str]:
    if not isinstance(layers, FixedLayers):
        raise WeightsError(f"{prefix}layers is a {type(layers).__name__}: only decoded parts fit")
    names: dict[str, str] = {}
    for i, block in enumerate(layers.blocks):
        names.update(_block_names(f"{prefix}layers.blocks.{i}", f"{root}.{i + offset}", block))
    return names


def _block_names(ours: str, theirs: str, block: nn.Module) -> dict[str, str]:
    if isinstance(block, ConvNormAct):
        return _conv_names(ours, theirs, block)
    names: dict[str, str] = {}
    for part, released in _BLOCK_PARTS.get(type(block), {}).items():
        conv = getattr(block, part)
        names.update(_conv_names(f"{ours}.{part}", f"{theirs}.{released}", conv))
    return names


def _conv_names(ours: str, theirs: str, module: ConvNormAct) -> dict[str, str]:
    names = {}
    for key in module.state_dict():
        kind, leaf = key.split(".", 1)
        names[f"{ours}.{key}"] = f"{theirs}.{'bn' if kind == 'norm' else 'conv'}.{leaf}"
    return names
