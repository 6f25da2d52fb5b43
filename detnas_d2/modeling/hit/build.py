"""Registry entries of Hit-Detector, by name in YAML.

==================================  ====================================================
``MODEL.BACKBONE.NAME``             what it builds
==================================  ====================================================
build_hit_backbone                  the backbone alone
build_hit_fpn_backbone              any backbone (``MODEL.HIT.BOTTOM_UP``), Detectron2's FPN (P2-P6)
build_hit_retinanet_fpn_backbone    the same, P3-P7, P6 made from the last feature
build_hit_pafpn_backbone            any backbone (``MODEL.HIT.BOTTOM_UP``), Hit neck (P2-P6)
build_hit_retinanet_pafpn_backbone  the same with P6 and P7 convolutions (P3-P7)
==================================  ====================================================

Whether a part is fixed (``MODEL.HIT.GENOTYPE``) or searched is ``MODEL.HIT.SEARCHABLE_PARTS``. The
head is ``MODEL.ROI_BOX_HEAD.NAME: HitBoxHead``, or ``MODEL.META_ARCHITECTURE: HitRetinaNet``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from torch import nn

from detnas_d2.layers import NormFactory, get_norm
from detnas_d2.modeling.bottom_up import bottom_up
from detnas_d2.modeling.hit.backbone import HitBackbone
from detnas_d2.modeling.hit.narrow import NeckWidths
from detnas_d2.modeling.hit.neck import HitPAFPN
from detnas_d2.modeling.mixed_block import FUSED_OPS
from detnas_d2.modeling.searchable_layers import (
    BuildOperation,
    ChoiceLayers,
    FixedLayers,
    PartLayers,
    RelaxedLayers,
    operation_builder,
)
from detnas_d2.ops.autotune import AutotuneCache
from detnas_d2.search_space import LayerSpec
from detnas_d2.search_space.genotype import GenotypeError, parse_part
from detnas_d2.search_space.hit_network import PARTS, HitNetwork, get_hit_network
from detnas_d2.search_space.operations import CANDIDATES, OperationError, get_operation
from detnas_d2.utils.errors import InputError

STRATEGIES = ("gradient", "sampling")
_ANY = CANDIDATES[0]
_NECKS = ("build_hit_pafpn_backbone", "build_hit_retinanet_pafpn_backbone")


def hit_network(cfg: CfgNode) -> HitNetwork:
    """The frame ``MODEL.HIT.NETWORK``, with the most of ``MODEL.HIT.NECK_CHANNELS``.

    Raises:
        InputError: no such frame, or numbers of channels that the detector cannot have.
    """
    network, channels = get_hit_network(cfg.MODEL.HIT.NETWORK), _neck_channels(cfg)
    return replace(network, neck_channels=channels[-1]) if channels else network


def searched_channels(cfg: CfgNode) -> tuple[int, ...]:
    """``MODEL.HIT.NECK_CHANNELS`` where there are several to search; else empty.

    Raises:
        InputError: the detector cannot have them.
    """
    channels = _neck_channels(cfg)
    return channels if len(channels) > 1 else ()


def _neck_channels(cfg: CfgNode) -> tuple[int, ...]:
    node = cfg.MODEL.HIT
    channels = tuple(node.NECK_CHANNELS)
    key = f"MODEL.HIT.NECK_CHANNELS {list(channels)}"
    if len(channels) < 2:
        return channels
    if not node.SEARCHABLE_PARTS or node.STRATEGY != "sampling":
        raise InputError(
            f"{key}: several are searched with the paths of MODEL.HIT.SEARCHABLE_PARTS "
            f"{list(node.SEARCHABLE_PARTS)} by MODEL.HIT.STRATEGY {node.STRATEGY!r}; expected one "
            "number, or some parts and 'sampling'"
        )
    if cfg.MODEL.BACKBONE.NAME not in _NECKS:
        raise InputError(
            f"{key}: MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} has no Hit neck; expected "
            f"{' or '.join(_NECKS)}, or one number"
        )
    return channels


def hit_norm(cfg: CfgNode) -> NormFactory:
    """The norm of all Hit-Detector parts."""
    return partial(get_norm, cfg.MODEL.HIT.NORM)


def candidate_ops(cfg: CfgNode, part: str) -> tuple[str, ...]:
    """The sub-space of a searchable part: ``MODEL.HIT.OPS``, or all 32 operations.

    With ``MODEL.HIT.SHARED_OPS`` it is the sub-space of the part named there.

    Raises:
        ValueError: an unknown operation, or one named twice; naming the key.
    """
    owner = (cfg.MODEL.HIT.SHARED_OPS or part).upper()
    key = f"MODEL.HIT.OPS.{owner}"
    ops = tuple(cfg.MODEL.HIT.OPS[owner]) or CANDIDATES
    for op in ops:
        try:
            get_operation(op)
        except OperationError as error:
            raise OperationError(f"{key}: {error}") from None
    if len(set(ops)) != len(ops):
        raise ValueError(f"{key} {list(ops)}: an operation is named twice")
    return ops


def part_layers(
    cfg: CfgNode,
    part: str,
    layers_of: Callable[[tuple[str, ...]], tuple[LayerSpec, ...]],
    *,
    levels: int = 4,
    build: BuildOperation | None = None,
) -> PartLayers:
    """The layers of a part as the config wants them: fixed, relaxed or one choice at a time.

    Args:
        layers_of: layer specifications for a tuple of candidates.
        levels: pyramid levels (of the neck).
        build: makes an operation of a layer, by default as the released part has it.

    Raises:
        GenotypeError: the part is not searched and has no genotype, or a wrong one.
        ValueError: an unknown part or strategy.
    """
    node = cfg.MODEL.HIT
    unknown = set(node.SEARCHABLE_PARTS) - set(PARTS)
    if unknown:
        raise ValueError(
            f"MODEL.HIT.SEARCHABLE_PARTS {sorted(unknown)}: expected {', '.join(PARTS)}"
        )
    if node.STRATEGY not in STRATEGIES:
        raise ValueError(f"MODEL.HIT.STRATEGY {node.STRATEGY!r}: expected {', '.join(STRATEGIES)}")
    if node.FUSED_OPS not in FUSED_OPS:
        raise ValueError(
            f"MODEL.HIT.FUSED_OPS {node.FUSED_OPS!r}: expected one of {', '.join(FUSED_OPS)}"
        )
    build = build or operation_builder(part, hit_norm(cfg))
    if part in node.SEARCHABLE_PARTS:
        layers = layers_of(candidate_ops(cfg, part))
        if node.STRATEGY == "sampling":
            return ChoiceLayers(part, layers, build, network=hit_network(cfg))
        relaxed = RelaxedLayers(part, layers, build, recompute=node.RECOMPUTE)
        tried = AutotuneCache(Path(cfg.OUTPUT_DIR) / "fused_ops.json" if cfg.OUTPUT_DIR else None)
        for block in relaxed.blocks:
            block.fused_ops = node.FUSED_OPS
            block.autotune = tried  # type: ignore[assignment]
        return relaxed
    key = f"MODEL.HIT.GENOTYPE.{part.upper()}"
    try:
        network = hit_network(cfg)
        ops = parse_part(network, part, node.GENOTYPE[part.upper()], levels=levels)
    except GenotypeError as error:
        raise GenotypeError(f"{key}: {error}") from None
    if not ops:
        raise GenotypeError(f"{key} is empty, but the {part} is not in MODEL.HIT.SEARCHABLE_PARTS")
    return FixedLayers(part, layers_of(()), ops, build)


def without_memory(cfg: CfgNode) -> nn.Module:
    """The model of a config on the meta device."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def at_neck_channels(cfg: CfgNode, channels: int) -> CfgNode:
    """A copy whose neck and head have so many channels."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.HIT.NECK_CHANNELS = [channels]
    return cfg


def part_specs(cfg: CfgNode) -> dict[str, tuple[LayerSpec, ...]]:
    """Part -> its layers, of the parts that the config searches or fixes by a genotype.

    They are read off the model, built without memory: what a layer's input is depends on the
    backbone, the neck's levels and the meta-architecture.
    """
    cfg = cfg.clone()
    cfg.defrost()
    candidates = {part: candidate_ops(cfg, part) for part in cfg.MODEL.HIT.SEARCHABLE_PARTS}
    cfg.MODEL.HIT.SHARED_OPS = ""
    for part in candidates:  # what a layer's input is does not depend on them; one builds fast
        cfg.MODEL.HIT.OPS[part.upper()] = [_ANY]
    return {
        m.part: tuple(
            replace(layer, ops=candidates[m.part]) if layer.ops == (_ANY,) else layer
            for layer in m.layers
        )
        for m in without_memory(cfg).modules()
        if isinstance(m, PartLayers)
    }


@BACKBONE_REGISTRY.register()
def build_hit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> HitBackbone:
    """The backbone alone, with the features ``MODEL.HIT.OUT_FEATURES``."""
    network = hit_network(cfg)
    layers = part_layers(cfg, "backbone", network.backbone_layers)
    features = list(cfg.MODEL.HIT.OUT_FEATURES)
    return HitBackbone(network, layers, norm=hit_norm(cfg), out_features=features)


def _top_block(channels: int, width: int, feature: str, *, retinanet: bool) -> nn.Module:
    """P6 and P7, made from ``feature``, or P6 alone, which learns nothing."""
    return LastLevelP6P7(channels, width, feature) if retinanet else LastLevelMaxPool()


def _fpn(cfg: CfgNode, input_shape: ShapeSpec, *, retinanet: bool) -> FPN:
    features, width = list(cfg.MODEL.FPN.IN_FEATURES), cfg.MODEL.FPN.OUT_CHANNELS
    body = bottom_up(cfg, input_shape)
    last = features[-1]
    top = _top_block(body.output_shape()[last].channels, width, last, retinanet=retinanet)
    return FPN(
        bottom_up=body,
        in_features=features,
        out_channels=width,
        norm=partial(get_norm, cfg.MODEL.FPN.NORM) if cfg.MODEL.FPN.NORM else "",
        top_block=top,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_hit_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """``MODEL.HIT.BOTTOM_UP`` under Detectron2's FPN, P2 to P6."""
    return _fpn(cfg, input_shape, retinanet=False)


@BACKBONE_REGISTRY.register()
def build_hit_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """``MODEL.HIT.BOTTOM_UP`` under Detectron2's FPN, P3 to P7; P6 made from the last feature."""
    return _fpn(cfg, input_shape, retinanet=True)


def _pafpn(cfg: CfgNode, input_shape: ShapeSpec, *, retinanet: bool) -> HitPAFPN:
    network = hit_network(cfg)
    features = list(cfg.MODEL.FPN.IN_FEATURES)
    body = bottom_up(cfg, input_shape)
    shapes = [body.output_shape()[name] for name in features]
    layers = part_layers(
        cfg,
        "neck",
        partial(
            network.neck_layers,
            in_channels=tuple(shape.channels for shape in shapes),
            strides=tuple(shape.stride for shape in shapes),
        ),
        levels=len(features),
    )
    width = network.neck_channels
    top = _top_block(width, width, "p5", retinanet=retinanet)
    widths = neck_widths(cfg)
    return HitPAFPN(body, features, layers, channels=width, top_block=top, widths=widths)


def neck_widths(cfg: CfgNode) -> NeckWidths | None:
    """The numbers of channels that the neck of the supernet of ``cfg`` runs at, if several."""
    searched = searched_channels(cfg)
    return NeckWidths(searched, partial(_narrower, cfg.clone())) if searched else None


def _narrower(cfg: CfgNode, channels: int) -> nn.Module:
    with torch.random.fork_rng([]):  # it comes in between the random numbers of a training
        return without_memory(at_neck_channels(cfg, channels))


@BACKBONE_REGISTRY.register()
def build_hit_pafpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> HitPAFPN:
    """``MODEL.HIT.BOTTOM_UP`` under the Hit neck, P2 to P6."""
    return _pafpn(cfg, input_shape, retinanet=False)


@BACKBONE_REGISTRY.register()
def build_hit_retinanet_pafpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> HitPAFPN:
    """``MODEL.HIT.BOTTOM_UP`` under the Hit neck, P3 to P7."""
    return _pafpn(cfg, input_shape, retinanet=True)
