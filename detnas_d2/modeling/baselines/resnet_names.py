"""ResNets of torchvision: names of their tensors, and what they were trained to see."""

from __future__ import annotations

import re
from collections.abc import Mapping

from detectron2.config import CfgNode
from torch import Tensor

_RENAMED = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer1\.", "res2."),
    (r"^layer2\.", "res3."),
    (r"^layer3\.", "res4."),
    (r"^layer4\.", "res5."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of the pixels that torchvision's weights were trained on, red first."""


def is_torchvision_resnet(state: Mapping[str, object]) -> bool:
    """Whether tensors are a ResNet's as torchvision calls them."""
    return {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight"} <= set(state)


def resnet_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a ResNet of torchvision as Detectron2 calls them, without the classifier and
    the counts of batches, which frozen norms have no place for.
    """
    return {
        _renamed(key): value
        for key, value in state.items()
        if not key.startswith("fc.") and not key.endswith(".num_batches_tracked")
    }


def _renamed(key: str) -> str:
    for pattern, ours in _RENAMED:
        key = re.sub(pattern, ours, key)
    return key


def torchvision_settings(cfg: CfgNode) -> list[str]:
    """Texts "KEY value, expected value" of what a config has otherwise than such weights need."""
    node = cfg.MODEL
    told = [] if cfg.INPUT.FORMAT == "RGB" else [f"INPUT.FORMAT {cfg.INPUT.FORMAT}, expected RGB"]
    for key, wanted in (("PIXEL_MEAN", MEAN), ("PIXEL_STD", DEVIATION)):
        pairs = zip(node[key], wanted, strict=False)
        if any(abs(own - theirs) > 1 for own, theirs in pairs):
            told.append(f"MODEL.{key} {list(node[key])}, expected {list(wanted)}")
    if node.RESNETS.STRIDE_IN_1X1 and node.RESNETS.DEPTH not in (18, 34):
        told.append("MODEL.RESNETS.STRIDE_IN_1X1 True, expected False")
    return told
