"""Parameters and multiply-adds of a detector, part by part, from shapes alone.

Parts: ``backbone`` (the bottom-up network), ``neck`` (what a feature pyramid adds),
``proposal_generator`` (RPN) and ``head`` (everything per region, or the dense head of a one-stage
detector). Counted are the multiply-adds of convolutions and linear layers. Nothing is computed:
modules run on the meta device, so no weights are needed and any size takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import StandardROIHeads, build_model
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn

import detnas_d2.modeling  # noqa: F401  (registers the backbones that configs name)
from detnas_d2.analysis.mmdet_flops import ExtraCosts
from detnas_d2.search_space import Cost

PARTS = ("backbone", "neck", "proposal_generator", "head")
CONVENTIONS = ("macs", "mmdet")


def analyze(
    cfg: CfgNode,
    *,
    input_size: tuple[int, int] = (800, 1200),
    proposals: int = 1000,
    convention: str = "macs",
) -> dict[str, Cost]:
    """Cost of each part and of the whole detector that ``cfg`` describes.

    Args:
        cfg: a Detectron2 config of a two-stage detector, a RetinaNet or an image classifier.
        input_size: (height, width) of the image; padded to what the backbone divides evenly.
        proposals: regions that the box head runs on (mask and keypoint heads run on
            ``TEST.DETECTIONS_PER_IMAGE`` of them at most).
        convention: "macs", or "mmdet" for what :mod:`mmdet_flops` describes.

    Returns:
        ``PARTS`` and "total" -> cost.

    Raises:
        ValueError: an unknown convention, or a model of another kind.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    model.eval()
    detections = min(proposals, cfg.TEST.DETECTIONS_PER_IMAGE)
    return analyze_model(
        model,
        input_size=input_size,
        proposals=proposals,
        detections=detections,
        convention=convention,
    )


@torch.no_grad()
def analyze_model(
    model: nn.Module,
    *,
    input_size: tuple[int, int],
    proposals: int,
    detections: int = 100,
    convention: str = "macs",
) -> dict[str, Cost]:
    """Cost of a model on the meta device; see :func:`analyze`. Run it in eval mode."""
    if convention not in CONVENTIONS:
        raise ValueError(f"convention {convention!r}: expected one of {', '.join(CONVENTIONS)}")
    parts = {part: list(_modules_of(model, part)) for part in PARTS}
    macs = dict.fromkeys(PARTS, 0)
    extra = ExtraCosts(model, partial(part_of, has_bottom_up=hasattr(model.backbone, "bottom_up")))
    with _counting(parts, macs), extra.counting() if convention == "mmdet" else nullcontext():
        _run(model, padded_size(model, input_size), proposals, detections)
    costs = {
        part: Cost(sum(p.numel() for p in _unique_parameters(modules)), macs[part])
        + extra.cost(part)
        for part, modules in parts.items()
    }
    return {**costs, "total": sum(costs.values(), Cost())}


def as_json(costs: dict[str, Cost]) -> dict[str, dict[str, int]]:
    """Plain numbers: {"backbone": {"params": ..., "macs": ...}, ...}."""
    return {part: {"params": cost.params, "macs": cost.macs} for part, cost in costs.items()}


def part_of(name: str, has_bottom_up: bool) -> str:
    """The part that a module called ``name`` in the model belongs to."""
    first, second = (*name.split(".", 2), "")[:2]
    if first == "backbone":
        return "backbone" if not has_bottom_up or second == "bottom_up" else "neck"
    return "proposal_generator" if first == "proposal_generator" else "head"


def _modules_of(model: nn.Module, part: str) -> Iterator[nn.Module]:
    has_bottom_up = hasattr(model.backbone, "bottom_up")
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is None:
            continue
        if part_of(name, has_bottom_up) == part:
            yield module


def _unique_parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    return list({id(p): p for m in modules for p in m.parameters(recurse=False)}.values())


def padded_size(model: Any, input_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image as the backbone gets it: multiples of what it divides by."""
    divisor = max(model.backbone.size_divisibility, 1)
    height, width = (-(-n // divisor) * divisor for n in input_size)
    return height, width


@contextmanager
def _counting(parts: dict[str, list[nn.Module]], macs: dict[str, int]) -> Iterator[None]:
    def hook_for(part: str) -> Callable[[nn.Module, tuple, Tensor], None]:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                kernel = module.weight[0].numel()
                # A transposed convolution uses each *input* element that often.
                elements = output if isinstance(module, nn.Conv2d) else inputs[0]
                macs[part] += elements.numel() * kernel
            elif isinstance(module, nn.Linear):
                macs[part] += output.numel() * module.in_features

        return hook

    handles = [
        module.register_forward_hook(hook_for(part))
        for part, modules in parts.items()
        for module in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(model: Any, size: tuple[int, int], proposals: int, detections: int) -> None:
    image = torch.empty((1, 3, *size), device="meta")
    if not hasattr(model, "proposal_generator") and not hasattr(model, "head_in_features"):
        if not hasattr(model, "logits"):
            raise ValueError(
                f"cannot analyze a {type(model).__name__}: expected a GeneralizedRCNN, "
                "ProposalNetwork, RetinaNet or ImageClassifier"
            )
        model.logits(image)
        return
    features = model.backbone(image)
    if hasattr(model, "head_in_features"):
        model.head([features[f] for f in model.head_in_features])
        return
    generator = model.proposal_generator
    generator.rpn_head([features[f] for f in generator.in_features])
    if hasattr(model, "sem_seg_head"):
        model.sem_seg_head.layers(features)
    roi_heads = getattr(model, "roi_heads", None)
    if roi_heads is not None:
        _run_roi_heads(roi_heads, features, proposals, detections)


def _run_roi_heads(
    heads: StandardROIHeads, features: dict[str, Tensor], proposals: int, detections: int
) -> None:
    channels = features[heads.box_in_features[0]].shape[1]

    def regions(pooler: ROIPooler, count: int) -> Tensor:
        return torch.empty((count, channels, *pooler.output_size), device="meta")

    stages = [(heads.box_head, heads.box_predictor)]
    if isinstance(heads.box_head, nn.ModuleList):  # Cascade R-CNN
        stages = list(zip(heads.box_head, heads.box_predictor, strict=True))
    for box_head, box_predictor in stages:
        box_predictor(box_head(regions(heads.box_pooler, proposals)))
    if getattr(heads, "mask_on", False):
        heads.mask_head.layers(regions(heads.mask_pooler, detections))
    if getattr(heads, "keypoint_on", False):
        heads.keypoint_head.layers(regions(heads.keypoint_pooler, detections))
