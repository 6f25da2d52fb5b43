"""RetinaNet with a searchable head: the one-stage Hit-Detector.

The authors' one-stage network was not released and the paper does not describe its head. Here the
head part stands in the place of RetinaNet's two convolution subnets: as those have one structure
and two sets of weights, one operation per layer is chosen for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from torch import Tensor, nn

from detnas_d2.layers import get_norm
from detnas_d2.modeling.hit.backbone import init_convolutions
from detnas_d2.modeling.hit.build import hit_network, neck_widths, part_layers
from detnas_d2.modeling.hit.neck import HitPAFPN
from detnas_d2.modeling.searchable_layers import BuildOperation, PartLayers, operation_builder
from detnas_d2.search_space import LayerSpec


class TwinOperation(nn.Module):
    """An operation twice, with two sets of weights: (N, 2 C, H, W) in two halves, and out again.

    One tensor holds both branches, so that a mixed layer handles them as one candidate.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList([first, second])

    def forward(self, x: Tensor) -> Tensor:
        halves = x.chunk(2, dim=1)
        return torch.cat([b(h) for b, h in zip(self.branches, halves, strict=True)], dim=1)


def twin_builder(build: BuildOperation) -> BuildOperation:
    """Makes every operation of a part twice."""

    def build_twin(layer: LayerSpec, op: str) -> TwinOperation:
        return TwinOperation(build(layer, op), build(layer, op))

    return build_twin


class HitRetinaNetHead(nn.Module):
    """Searchable layers for classes and boxes, then RetinaNet's two predictors.

    Input: features (N, C, Hi, Wi), finest first. Output: logits (N, anchors * classes, Hi, Wi) and
    box deltas (N, anchors * 4, Hi, Wi) of each level.

    Args:
        layers: the searchable layers, of :class:`TwinOperation`.
        prior: probability of an object that the classifier starts from.
    """

    def __init__(
        self, layers: PartLayers, *, channels: int, anchors: int, classes: int, prior: float
    ) -> None:
        super().__init__()
        self.layers = layers
        self.cls_score = nn.Conv2d(channels, anchors * classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, anchors * 4, 3, padding=1)
        init_convolutions(layers)
        assert self.cls_score.bias is not None and self.bbox_pred.bias is not None
        for predictor in (self.cls_score, self.bbox_pred):
            nn.init.normal_(predictor.weight, std=0.01)
        nn.init.zeros_(self.bbox_pred.bias)
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior) / prior))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = [], []
        for feature in features:
            x = torch.cat([feature, feature], dim=1)
            for index in range(len(self.layers)):
                x = self.layers(index, x)
            for_classes, for_boxes = x.chunk(2, dim=1)
            logits.append(self.cls_score(for_classes))
            deltas.append(self.bbox_pred(for_boxes))
        return logits, deltas


@META_ARCH_REGISTRY.register()
class HitRetinaNet(RetinaNet):
    """RetinaNet whose subnets are the head part of ``MODEL.HIT``, with ``MODEL.RETINANET.NORM``."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        plain = cfg.clone()
        plain.defrost()
        plain.MODEL.RETINANET.NORM = ""  # Detectron2's own head, replaced below, fails with GN
        arguments = super().from_config(plain)
        if isinstance(arguments["backbone"], HitPAFPN):
            arguments["backbone"].widths = neck_widths(cfg)
        shape = arguments["backbone"].output_shape()
        shapes = [shape[name] for name in cfg.MODEL.RETINANET.IN_FEATURES]
        arguments["head"] = HitRetinaNetHead(
            head_layers(cfg, tuple(s.stride for s in shapes)),
            channels=shapes[0].channels,
            anchors=build_anchor_generator(cfg, shapes).num_cell_anchors[0],
            classes=cfg.MODEL.RETINANET.NUM_CLASSES,
            prior=cfg.MODEL.RETINANET.PRIOR_PROB,
        )
        return arguments


def head_layers(cfg: CfgNode, strides: tuple[int, ...]) -> PartLayers:
    """The head's searchable layers over pyramid levels of ``strides``.

    Raises:
        ValueError: a norm with statistics over the batch. The levels share the layers; their
            statistics differ, and running statistics of all of them would fit none.
    """
    norm = cfg.MODEL.RETINANET.NORM
    if norm != "GN":
        raise ValueError(f"MODEL.RETINANET.NORM {norm!r}: a searchable head expects 'GN'")
    network = hit_network(cfg)
    return part_layers(
        cfg,
        "head",
        partial(network.dense_head_layers, strides=strides),
        build=twin_builder(operation_builder("head", partial(get_norm, norm))),
    )
