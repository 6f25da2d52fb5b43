"""Learning-rate schedules: Detectron2's, and the linear one of DetNAS's classification recipe."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.engine import hooks
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


def shorten(cfg: CfgNode, iterations: int) -> None:
    """Makes ``cfg`` train for so many iterations; steps and warm-up move along, in place."""
    solver, share = cfg.SOLVER, iterations / cfg.SOLVER.MAX_ITER
    steps = sorted({round(step * share) for step in solver.STEPS})
    solver.STEPS = tuple(step for step in steps if 0 < step < iterations)
    solver.WARMUP_ITERS = round(solver.WARMUP_ITERS * share)
    solver.MAX_ITER = iterations


class LRScheduler(hooks.LRScheduler):
    """Detectron2's hook, which shows the most frequent rate: with one group per parameter, the
    biases', BASE_LR times BIAS_LR_FACTOR. This one shows the rate that BASE_LR has become.

    Checkpoints keep the state of a hook under the name of its class.
    """

    def __init__(self, base_lr: float) -> None:
        super().__init__()
        self._base_lr = base_lr

    def before_train(self) -> None:
        super().before_train()
        rates = [g.get("initial_lr", g["lr"]) for g in self._optimizer.param_groups]
        nearest = min(range(len(rates)), key=lambda i: abs(rates[i] - self._base_lr))
        self._best_param_group_id = nearest
