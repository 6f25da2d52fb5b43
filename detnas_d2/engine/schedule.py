"""Learning-rate schedules: Detectron2's, and the linear one of DetNAS's classification recipe."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler, build_lr_scheduler
from fvcore.common.param_scheduler import LinearParamScheduler


def build_schedule(
    cfg: CfgNode, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule ``SOLVER.LR_SCHEDULER_NAME``: WarmupMultiStepLR, WarmupCosineLR, or
    WarmupLinearLR, which falls from the base rate to 0 at ``SOLVER.MAX_ITER``.
    """
    if cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupLinearLR":
        return build_lr_scheduler(cfg, optimizer)
    schedule = WarmupParamScheduler(
        LinearParamScheduler(1, 0),
        cfg.SOLVER.WARMUP_FACTOR,
        min(cfg.SOLVER.WARMUP_ITERS / cfg.SOLVER.MAX_ITER, 1.0),
        cfg.SOLVER.WARMUP_METHOD,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=cfg.SOLVER.MAX_ITER)
