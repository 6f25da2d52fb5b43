"""Calibration of a two-stage detector, whose box head has BatchNorms: nothing behind the last one.

What follows, such as the layers on all of a region's features and the losses, feeds no BatchNorm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from detectron2.modeling import GeneralizedRCNN, StandardROIHeads
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from torch import nn

_BOX_HEAD = "roi_heads.box_head."


class _Reached(Exception):
    """The forward pass got to where it may end."""


def up_to_last_norm(
    model: nn.Module, names: Iterable[str]
) -> Callable[[list[dict[str, Any]]], object] | None:
    """The model's forward in training mode, to the last BatchNorm of its box head.

    Random choices, of anchors and regions, are those of the whole forward.

    Args:
        names: of the model's BatchNorms.

    Returns:
        a function of a batch (list of Detectron2 dicts); None where the model may be another, or
        other heads have BatchNorms, too.
    """
    roi_heads: Any = getattr(model, "roi_heads", None)
    if type(model) is not GeneralizedRCNN or type(roi_heads) is not StandardROIHeads:
        return None
    box_head: nn.Module = roi_heads.box_head
    if not isinstance(box_head, FastRCNNConvFCHead):
        return None
    of_heads = [name for name in names if name.startswith("roi_heads.")]
    if not of_heads or not all(name.startswith(_BOX_HEAD) for name in of_heads):
        return None
    layers = dict(box_head.named_children())  # in the order they run in
    last = max(list(layers).index(name.removeprefix(_BOX_HEAD).split(".")[0]) for name in of_heads)
    if last + 1 == len(layers):
        return None
    following = list(layers.values())[last + 1]

    def stop(module: nn.Module, inputs: object) -> None:
        raise _Reached

    def forward(batch: list[dict[str, Any]]) -> None:
        handle = following.register_forward_pre_hook(stop)
        try:
            model(batch)
        except _Reached:
            pass
        finally:
            handle.remove()

    return forward
