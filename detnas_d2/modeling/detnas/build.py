"""Registry entries: supernet and decoded backbones, bare and with FPN, by name in YAML.

=============================================  ====================================
``MODEL.BACKBONE.NAME``                        what it builds
=============================================  ====================================
build_detnas_supernet_backbone                 supernet
build_detnas_supernet_fpn_backbone             supernet, FPN P2-P6 (Faster, Mask R-CNN)
build_detnas_supernet_retinanet_fpn_backbone   supernet, FPN P3-P7
build_detnas_backbone                          network of ``MODEL.DETNAS.PATH``
build_detnas_fpn_backbone                      the same with FPN P2-P6
build_detnas_retinanet_fpn_backbone            the same with FPN P3-P7
=============================================  ====================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from torch import nn

from detnas_d2.layers import NormFactory, get_norm
from detnas_d2.modeling.detnas.backbone import (
    FUSED_OPS,
    DecodedBackbone,
    ShuffleNetBackbone,
    Supernet,
)
from detnas_d2.ops.autotune import AutotuneCache
from detnas_d2.search_space import PathError, SearchSpace, get_space, space_of


def norm_factory(cfg: CfgNode, norm: str) -> NormFactory | str:
    """The ``norm`` that Detectron2's layers take: a factory, or "" for no norm."""
    if not norm:
        return ""
    return partial(get_norm, norm, momentum=cfg.MODEL.DETNAS.NORM_MOMENTUM)


def backbone_from_config(
    cfg: CfgNode, *, supernet: bool, out_features: list[str] | None = None
) -> ShuffleNetBackbone:
    """The backbone that ``cfg.MODEL.DETNAS`` describes.

    Raises:
        PathError: ``MODEL.DETNAS.PATH`` is missing or is no path of the space.
    """
    node = cfg.MODEL.DETNAS
    if node.FUSED_OPS not in FUSED_OPS:
        raise ValueError(
            f"MODEL.DETNAS.FUSED_OPS {node.FUSED_OPS!r}: expected one of {', '.join(FUSED_OPS)}"
        )
    if not supernet and not node.PATH:
        raise PathError(
            f"MODEL.DETNAS.PATH is empty: MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} is a "
            "decoded backbone and needs a path"
        )
    if "@" in node.PATH and not supernet:
        raise PathError(
            f"MODEL.DETNAS.PATH {node.PATH!r} tells a resolution: expected the operations alone; "
            "INPUT.MIN_SIZE_TEST and the other sizes of INPUT are those of the images"
        )
    options = {
        "space": space_of(cfg),
        "out_features": out_features or node.OUT_FEATURES,
        "norm": node.NORM,
        "norm_momentum": node.NORM_MOMENTUM,
        "shuffle_method": node.SHUFFLE_METHOD,
        "last_conv": node.LAST_CONV,
        "init": node.INIT,
        "fused_ops": node.FUSED_OPS,
        "autotune_dir": cfg.OUTPUT_DIR,
    }
    if supernet:
        return supernet_backbone(**options)
    try:
        return decoded_backbone(path=node.PATH, **options)
    except PathError as error:
        raise PathError(f"MODEL.DETNAS.PATH: {error}") from None


def supernet_backbone(*, space: str | SearchSpace, **options: Any) -> Supernet:
    """The supernet of a space from plain values, e.g. for Detectron2's ``LazyCall``.

    Args:
        space: name of a space that is built in, e.g. "detnas_small", or any space.
        options: of :func:`decoded_backbone`.
    """
    found = _space(space)
    return _backbone(partial(Supernet, found), found, **options)


def decoded_backbone(*, space: str | SearchSpace, path: str, **options: Any) -> DecodedBackbone:
    """The backbone of one path from plain values, e.g. for Detectron2's ``LazyCall``.

    Args:
        space: see :func:`supernet_backbone`.
        path: text of the path, as a search reports it.
        options: ``out_features`` (default those of all stages, "stage1" of stride 4 to
            the last), ``norm`` ("BN"),
            ``norm_momentum`` (0.1), ``shuffle_method`` (1), ``last_conv`` (False), ``init``
            ("default"), ``fused_ops`` ("auto"): the keys of the same names below
            ``MODEL.DETNAS``; and ``autotune_dir``, a folder to keep in what "auto" and "measured"
            find ("": nowhere, and then several processes use no operators on GPUs).

    Raises:
        PathError: no path of the space.
    """
    found = _space(space)
    return _backbone(partial(DecodedBackbone, found.path(path)), found, **options)


def _space(space: str | SearchSpace) -> SearchSpace:
    return get_space(space) if isinstance(space, str) else space


def _backbone(
    make: Callable[..., Any],
    space: SearchSpace,
    *,
    out_features: Sequence[str] = (),
    norm: str = "BN",
    norm_momentum: float = 0.1,
    shuffle_method: int = 1,
    last_conv: bool = False,
    init: str = "default",
    fused_ops: str = "auto",
    autotune_dir: str = "",
) -> Any:
    if fused_ops not in FUSED_OPS:
        raise ValueError(f"fused_ops {fused_ops!r}: expected one of {', '.join(FUSED_OPS)}")
    stages = [f"stage{stage}" for stage, _ in enumerate(space.stage_depths, start=1)]
    backbone = make(
        norm=partial(get_norm, norm, momentum=norm_momentum) if norm else "",
        shuffle_method=shuffle_method,
        out_features=list(out_features) or stages,
        last_conv=last_conv,
        init=init,
    )
    backbone.fused_ops = fused_ops
    if autotune_dir and fused_ops != "off":
        backbone.autotune = AutotuneCache(Path(autotune_dir) / "fused_ops.json")
    return backbone


def add_conv_biases(module: nn.Module) -> None:
    """Gives every bias-free convolution in ``module`` a zero bias."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and conv.bias is None:
            conv.bias = nn.Parameter(torch.zeros(conv.out_channels))


def _fpn(cfg: CfgNode, *, supernet: bool, retinanet: bool) -> FPN:
    features = list(cfg.MODEL.FPN.IN_FEATURES)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    if retinanet:
        # As released: P6 is made from P5, not from C5. A space may have more stages, or fewer.
        stages = [f"stage{stage}" for stage, _ in enumerate(space_of(cfg).stage_depths, start=1)]
        coarsest = max((stages.index(name) for name in features if name in stages), default=0)
        top_block: nn.Module = LastLevelP6P7(channels, channels, in_feature=f"p{coarsest + 2}")
    else:
        top_block = LastLevelMaxPool()
    neck = FPN(
        bottom_up=backbone_from_config(cfg, supernet=supernet, out_features=features),
        in_features=features,
        out_channels=channels,
        norm=norm_factory(cfg, cfg.MODEL.FPN.NORM),
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
    if cfg.MODEL.DETNAS.CONV_BIAS_BEFORE_NORM:
        for name, child in neck.named_children():
            if name != "bottom_up":
                add_conv_biases(child)
    return neck


DECODED_BACKBONES = {
    "build_detnas_supernet_backbone": "build_detnas_backbone",
    "build_detnas_supernet_fpn_backbone": "build_detnas_fpn_backbone",
    "build_detnas_supernet_retinanet_fpn_backbone": "build_detnas_retinanet_fpn_backbone",
    "build_detnas_relaxed_backbone": "build_detnas_backbone",
}
"""Backbone that is searched -> the same of the one path ``MODEL.DETNAS.PATH``."""


@BACKBONE_REGISTRY.register()
def build_detnas_supernet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ShuffleNetBackbone:
    """The supernet of ``MODEL.DETNAS.SPACE`` alone."""
    return backbone_from_config(cfg, supernet=True)


@BACKBONE_REGISTRY.register()
def build_detnas_supernet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The supernet under Detectron2's FPN, P2 to P6."""
    return _fpn(cfg, supernet=True, retinanet=False)


@BACKBONE_REGISTRY.register()
def build_detnas_supernet_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The supernet under Detectron2's FPN, P3 to P7."""
    return _fpn(cfg, supernet=True, retinanet=True)


@BACKBONE_REGISTRY.register()
def build_detnas_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ShuffleNetBackbone:
    """The network of ``MODEL.DETNAS.PATH`` alone."""
    return backbone_from_config(cfg, supernet=False)


@BACKBONE_REGISTRY.register()
def build_detnas_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The network of ``MODEL.DETNAS.PATH`` under Detectron2's FPN, P2 to P6."""
    return _fpn(cfg, supernet=False, retinanet=False)


@BACKBONE_REGISTRY.register()
def build_detnas_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The network of ``MODEL.DETNAS.PATH`` under Detectron2's FPN, P3 to P7."""
    return _fpn(cfg, supernet=False, retinanet=True)
