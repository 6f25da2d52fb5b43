"""Trainer of relaxed models: pre-training, screening and search by gradient."""

from __future__ import annotations

import logging
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook
from detectron2.utils import comm
from torch import nn

from detnas_d2.data import build_train_loader
from detnas_d2.engine.architectures import counted_region
from detnas_d2.engine.checks.data import sharing_images
from detnas_d2.engine.trainers.bilevel_step import BilevelStep
from detnas_d2.engine.trainers.trainer import Trainer
from detnas_d2.modeling.searchable_layers import RelaxedLayers, relaxed_parts
from detnas_d2.search.gradient.objective import GIGA, ExpectedCost
from detnas_d2.search.gradient.screening import RemovalSchedule, Screening
from detnas_d2.utils.errors import InputError

logger = logging.getLogger("detnas_d2.search")

PROGRESS_PERIOD = 100
"""Iterations between two lines about the current genotype."""


class GenotypeProgress(HookBase):
    """Logs the entropy of each part's choices, the cost and the current genotype.

    Only once architecture parameters learn: until then all choices are equal.
    """

    @torch.no_grad()
    def after_step(self) -> None:
        step, iteration = self.trainer.step, self.trainer.iter
        due = (iteration + 1) % PROGRESS_PERIOD == 0 and step.learns_architecture(iteration)
        if not due or not comm.is_main_process():
            return
        texts = [
            f"{name} (entropy {float(layers.entropy()):.3f}): {' '.join(layers.decode())}"
            for name, layers in step.parts.items()
        ]
        logger.info(
            "Iteration %d: expected %.3f, decoded %.3f GMACs; %s",
            iteration + 1,
            float(step.cost()),
            step.cost.decoded_gmacs(),
            "; ".join(texts),
        )


class GradientSearchTrainer(Trainer):
    """Trains a relaxed model: pre-training, screening or search, by ``cfg.HIT_SEARCH``.

    Raises:
        ValueError: Detectron2 would rescale the iterations of ``cfg.SOLVER`` alone.
    """

    def __init__(self, cfg: CfgNode) -> None:
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference not in (0, comm.get_world_size()):
            raise InputError(
                f"SOLVER.REFERENCE_WORLD_SIZE {reference}: the iterations of HIT_SEARCH are not "
                "rescaled with the number of processes; expected 0"
            )
        super().__init__(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of the weights alone: architecture parameters are never decayed."""
        parts = relaxed_parts(model).values()
        for layers in parts:
            layers.alpha.requires_grad_(False)
        optimizer = super().build_optimizer(cfg, model)
        for layers in parts:
            layers.alpha.requires_grad_(True)
        return optimizer

    @classmethod
    def build_step(
        cls, cfg: CfgNode, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> BilevelStep:
        parts = relaxed_parts(model)
        if not parts:
            raise InputError(
                "the model has no relaxed part: set MODEL.HIT.SEARCHABLE_PARTS and "
                "MODEL.HIT.STRATEGY 'gradient'"
            )
        node = cfg.HIT_SEARCH
        if node.ARCH_START_ITER >= 0:
            check_halves(cfg)
        return BilevelStep(
            model,
            optimizer,
            arch_optimizer=torch.optim.Adam(
                [layers.alpha for layers in parts.values()],
                lr=node.ARCH_LR,
                betas=tuple(node.ARCH_BETAS),
            ),
            arch_start=node.ARCH_START_ITER,
            cost=ExpectedCost(
                parts,
                input_size=tuple(node.COST_INPUT),
                proposals=node.COST_PROPOSALS,
                region=counted_region(cfg),
            ),
            cost_weight=node.COST_WEIGHT * GIGA / node.COST_UNIT,
            sparsity=(node.SCREENING.GROUP_SPARSITY, node.SCREENING.SPARSITY_TERM),
            screening=build_screening(cfg, parts) if node.SCREENING.ENABLED else None,
            record_period=node.SCREENING.RECORD_PERIOD,
            seed=cfg.SEED,
            amp=cfg.SOLVER.AMP.ENABLED,
        )

    def train(self) -> Any:
        start = self.cfg.HIT_SEARCH.ARCH_START_ITER
        if start >= 0 and self.start_iter < self.max_iter:
            loader = build_train_loader(
                self.cfg,
                start_iter=max(self.start_iter - start, 0),
                dataset_names=self.cfg.HIT_SEARCH.ARCH_TRAIN,
            )
            self.step.set_arch_data(loader)
        return super().train()

    def build_hooks(self) -> list[Any]:
        # A relaxed network is not what is searched for: it is decoded, not evaluated.
        built = [hook for hook in super().build_hooks() if not isinstance(hook, EvalHook)]
        return [*built, GenotypeProgress()]


def check_halves(cfg: CfgNode) -> None:
    """Raises ValueError unless weights and architecture parameters learn from different data."""
    weights, architecture = tuple(cfg.DATASETS.TRAIN), tuple(cfg.HIT_SEARCH.ARCH_TRAIN)
    if not architecture or sharing_images(weights, architecture):
        raise InputError(
            f"HIT_SEARCH.ARCH_TRAIN {architecture} must name datasets that share no image with "
            f"DATASETS.TRAIN {weights}, e.g. <name>@search_val next to <name>@search_train"
        )


def build_screening(cfg: CfgNode, parts: dict[str, RelaxedLayers]) -> Screening:
    """The screening that the config describes.

    Raises:
        ValueError: not exactly one part is searched, or the iterations of
            ``HIT_SEARCH.SCREENING`` do not fit together.
    """
    if len(parts) != 1:
        raise InputError(f"one part is screened at a time, the model relaxes {', '.join(parts)}")
    (layers,) = parts.values()
    node, start, end = cfg.HIT_SEARCH.SCREENING, cfg.HIT_SEARCH.ARCH_START_ITER, cfg.SOLVER.MAX_ITER
    if not 0 <= start < node.REMOVE_START <= node.REMOVE_END <= end:
        # Scores of operations that have not learned are equal; what is never removed is kept.
        raise InputError(
            f"expected 0 <= HIT_SEARCH.ARCH_START_ITER ({start}) < SCREENING.REMOVE_START "
            f"({node.REMOVE_START}) <= SCREENING.REMOVE_END ({node.REMOVE_END}) <= "
            f"SOLVER.MAX_ITER ({end})"
        )
    if not 1 <= node.KEEP <= len(layers.ops):
        raise InputError(
            f"HIT_SEARCH.SCREENING.KEEP {node.KEEP}: expected 1 to {len(layers.ops)}, the number "
            f"of operations of the {layers.part}"
        )
    schedule = RemovalSchedule(len(layers.ops), node.KEEP, node.REMOVE_START, node.REMOVE_END)
    return Screening(layers, schedule)
