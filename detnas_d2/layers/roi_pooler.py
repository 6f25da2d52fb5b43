"""Detectron2's pooler of regions, without gradients through ``ops.roi_align``."""

from __future__ import annotations

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.structures import Boxes
from torch import Tensor

from detnas_d2 import ops
from detnas_d2.layers.fused_ops import hooked, values_alone
from detnas_d2.ops.registration import takes
from detnas_d2.ops.roi_align import takes_regions


class LevelsPooler(ROIPooler):
    """All levels by one operator, whose regions come out channels_last.

    Where gradients are recorded, on GPUs and everywhere else that the operator does not fit, it is
    Detectron2's pooler. Made of one by giving it this class.
    """

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        if not self._fits(x, box_lists):
            return super().forward(x, box_lists)
        boxes = convert_boxes_to_pooler_format(box_lists)
        if not boxes.isfinite().all():
            return super().forward(x, box_lists)
        levels = [0] * len(boxes)
        if len(x) > 1:
            sizes = (self.canonical_box_size, self.canonical_level)
            assigned = assign_boxes_to_levels(box_lists, self.min_level, self.max_level, *sizes)
            levels = assigned.tolist()
        scales = [pooler.spatial_scale for pooler in self.level_poolers]
        first = self.level_poolers[0]
        options = (self.output_size[0], max(first.sampling_ratio, 0), first.aligned)
        return ops.roi_align(x, boxes, levels, scales, *options)

    def _fits(self, x: list[Tensor], box_lists: list[Boxes]) -> bool:
        if not values_alone() or not x or len(x) != len(self.level_poolers):
            return False
        if not 0 < len(x[0]) == len(box_lists):
            return False
        if self.output_size[0] != self.output_size[1] or self.output_size[0] < 1:
            return False
        if any(type(pooler) is not ROIAlign or hooked(pooler) for pooler in self.level_poolers):
            return False
        if any(type(boxes) is not Boxes for boxes in box_lists):
            return False
        if any(boxes.tensor.dtype != torch.float32 for boxes in box_lists):
            return False
        return all(takes(t) and takes_regions(t) and t.dtype == torch.float32 for t in x)
