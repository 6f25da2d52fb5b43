"""Gradient clipping by the norm of the whole model, which Detectron2's solver does not offer."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer
from torch import nn

FULL_MODEL = "full_model"


def build_clipped_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Detectron2's optimizer; ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE: full_model`` works with it.

    That clips the norm over all parameters together, as mmdetection's ``grad_clip`` does and the
    released Hit-Detector was trained with; Detectron2's "norm" clips each parameter by itself.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED or clip.CLIP_TYPE != FULL_MODEL:
        return build_optimizer(cfg, model)
    plain = cfg.clone()
    plain.defrost()
    plain.SOLVER.CLIP_GRADIENTS.ENABLED = False
    optimizer = build_optimizer(plain, model)

    def clip_gradients(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, norm_type=clip.NORM_TYPE)

    optimizer.register_step_pre_hook(clip_gradients)
    return optimizer
