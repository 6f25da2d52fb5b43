"""A region proposal head for few channels and Adam."""

from __future__ import annotations

from typing import Any

from detectron2.config import configurable
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead
from torch import nn


@RPN_HEAD_REGISTRY.register()
class DetNASRPNHead(StandardRPNHead):
    """Detectron2's head, whose objectness starts from N(0, 1 / channels).

    Detectron2's N(0, 0.01^2) is made for 256 channels and SGD. Most anchors are background at
    first, so the gradients of all objectness weights have one sign, and Adam moves each weight by
    the learning rate a step: after a few dozen steps that outweighs how they started, all have one
    sign, and some trainings need a thousand steps to get out of that.
    """

    @configurable
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        layer = self.objectness_logits
        nn.init.normal_(layer.weight, std=layer.in_channels**-0.5)
