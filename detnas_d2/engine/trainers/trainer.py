"""Training of supernets and of plain networks on Detectron2's hooks, writers and checkpoints."""

from __future__ import annotations

import logging
import os
import weakref
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, create_ddp_model, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter
from torch import nn

from detnas_d2.config.resolutions import at_resolution
from detnas_d2.data import (
    DataState,
    build_test_loader,
    build_train_loader,
    data_changes,
    data_state,
)
from detnas_d2.data.loaders.resized import Resizing
from detnas_d2.engine.checkpoint import DetNASCheckpointer
from detnas_d2.engine.checks.data import training_sets
from detnas_d2.engine.screen import prints_logged
from detnas_d2.engine.scripted import plain_torchscript
from detnas_d2.engine.supernet_check.hook import SupernetCheck
from detnas_d2.engine.supernet_check.plan import is_checked
from detnas_d2.engine.telling import Printer
from detnas_d2.engine.trainers.distillation import build_distillation
from detnas_d2.engine.trainers.ending import EvalAtTheEnd
from detnas_d2.engine.trainers.gradients import broadcast
from detnas_d2.engine.trainers.iteration import unwrapped
from detnas_d2.engine.trainers.optimizer import build_optimizer
from detnas_d2.engine.trainers.path_sampling import ResolutionSampler, build_path_sampler
from detnas_d2.engine.trainers.path_step import PathTrainer
from detnas_d2.engine.trainers.precise_bn import SeededPreciseBN
from detnas_d2.engine.trainers.progress import Events, TellProgress, ToldLoader
from detnas_d2.engine.trainers.schedule import LRScheduler, build_schedule
from detnas_d2.evaluation.evaluators import build_evaluator
from detnas_d2.layers.kept_weights import weights_stay
from detnas_d2.modeling import find_supernet, use_operators
from detnas_d2.modeling.searchable_layers import relaxed_parts
from detnas_d2.utils.errors import InputError


def refuse_relaxed(model: nn.Module) -> None:
    """Raises InputError if the model has relaxed parts, to be trained as a plain one."""
    if parts := relaxed_parts(model):
        raise InputError(
            f"{' and '.join(parts)} of the model: relaxed; as in a plain network their "
            "architecture parameters would learn with the weights; expected GradientSearchTrainer"
        )


class Trainer(DefaultTrainer):
    """Detectron2's default trainer for this package's models, resumable to the bit.

    It differs in the step (:class:`PathTrainer`), in the data loader, whose batch of an iteration
    is a pure function of the seed, and in the checkpoint, which holds the state of all of them.
    The keys are Detectron2's; ``SEED`` must be set (the default here is 0).
    """

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        if cfg.SEED < 0:
            raise InputError(f"SEED {cfg.SEED}: expected a number >= 0, training is reproducible")
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = self.build_step(cfg, model, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetNASCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        solver = cfg.SOLVER
        self.checkpointer.keep_every = solver.CHECKPOINT_KEEP_EVERY * solver.CHECKPOINT_PERIOD
        self._data: DataState | None = None
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @property
    def step(self) -> PathTrainer:
        """The training step; Detectron2's ``run_step`` calls it as ``_trainer``."""
        return self._trainer

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return use_operators(super().build_model(cfg))

    @classmethod
    def build_step(
        cls, cfg: CfgNode, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> PathTrainer:
        """The step of this model.

        A supernet is never wrapped in DistributedDataParallel; nor is a network on CPUs, where
        that refuses SyncBatchNorm. The step then averages the gradients itself.

        Raises:
            InputError: the model has relaxed parts.
        """
        refuse_relaxed(model)
        supernet = find_supernet(model)
        sampler = build_path_sampler(cfg, supernet.space) if supernet else None
        distillation = build_distillation(cfg, model) if supernet else None
        if supernet is None and next(model.parameters()).is_cuda:
            model = create_ddp_model(model, broadcast_buffers=False)
        return PathTrainer(
            model,
            optimizer,
            path_sampler=sampler,
            distillation=distillation,
            seed=cfg.SEED,
            amp=cfg.SOLVER.AMP.ENABLED,
        )

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume=resume)
        module = unwrapped(self.model)
        broadcast((*module.parameters(), *module.buffers()))

    @plain_torchscript()
    def train(self) -> Any:
        """Trains to ``SOLVER.MAX_ITER``; returns the results of the final evaluation.

        A training that was finished before is only evaluated; its ``model_final.pth`` is written if
        it was ended before that was. None for a model that is not evaluated, like a supernet; an
        empty dict without ``DATASETS.TEST``.
        """
        if self.start_iter < self.max_iter:
            self.data()  # as it is when training starts
            self.step.set_data(self.batches(self.start_iter))
            super().train()
        else:
            logging.getLogger(__name__).info(
                "Training is finished (iteration %d of %d).", self.start_iter, self.max_iter
            )
            self.checkpointer.save_final(self.start_iter - 1)
            if any(isinstance(hook, hooks.EvalHook) for hook in self._hooks):
                self._last_eval_results = self.test(self.cfg, self.model)
        return self.results

    @property
    def results(self) -> Any:
        """Those of the last evaluation, None before there is one."""
        return getattr(self, "_last_eval_results", None)

    def batches(self, start_iter: int) -> Any:
        """What the step trains on from an iteration on, at the resolutions of its paths."""
        cfg, sampler, resizing = self.cfg, self.step.path_sampler, None
        if isinstance(sampler, ResolutionSampler):
            configs = {size: at_resolution(cfg, size) for size in sampler.resolutions}
            resizing = Resizing(configs, sampler.sizes)
        return build_train_loader(cfg, start_iter=start_iter, resizing=resizing)

    def data(self) -> DataState:
        """State of what is learned from, on rank 0, which writes and compares it."""
        if self._data is None:
            names = training_sets(self.cfg)
            self._data = data_state(names) if comm.is_main_process() else {}
        return self._data

    # The key and the one call are those of Detectron2's main branch; version 0.6 has neither.
    def state_dict(self) -> dict[str, Any]:
        own = {"_trainer": self.step.state_dict(), "data": self.data()}
        return {**TrainerBase.state_dict(self), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        changed = data_changes(self.data(), state_dict.get("data", {}))
        if changed:
            raise InputError(
                f"{self.cfg.OUTPUT_DIR}: the training there was begun with other data; changed "
                f"since: {', '.join(changed)}. Restore the data, or use another OUTPUT_DIR"
            )
        TrainerBase.load_state_dict(self, state_dict)
        self.step.load_state_dict(state_dict["_trainer"])

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Any:
        # Every rank scores its part of the images with the statistics that the checkpoint holds.
        # BN, unlike SyncBN, has others on each rank.
        broadcast(unwrapped(model).buffers())
        with prints_logged(logging.getLogger(__name__)), weights_stay(model):
            return super().test(cfg, model, evaluators)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        return build_schedule(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_train_loader(cfg, start_iter=0)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return ToldLoader(build_test_loader(cfg, dataset_name))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)

    def build_writers(self) -> list[Any]:
        folder, own = self.cfg.OUTPUT_DIR, weakref.proxy(self)
        os.makedirs(folder, exist_ok=True)
        json = JSONWriter(os.path.join(folder, "metrics.json"))
        return [Printer(self.max_iter), json, Events(folder, lambda: own.start_iter)]

    def build_hooks(self) -> list[Any]:
        if self.step.supernet is not None and self.cfg.TEST.PRECISE_BN.ENABLED:
            raise InputError("TEST.PRECISE_BN.ENABLED: a supernet is recalibrated by the search")
        replaced = {
            hooks.EvalHook: EvalAtTheEnd,
            hooks.PreciseBN: lambda hook: SeededPreciseBN(hook, self.cfg.SEED),
            hooks.LRScheduler: lambda hook: LRScheduler(self.cfg.SOLVER.BASE_LR),
        }
        built = super().build_hooks()
        built = [replaced.get(type(hook), lambda same: same)(hook) for hook in built]
        built.append(TellProgress(self.cfg))
        supernet = self.step.supernet
        if supernet is None:
            return built
        # A supernet has no path to evaluate; a search evaluates its paths, a check a few of them.
        check = [SupernetCheck(self.cfg, supernet.space)] if is_checked(self.cfg) else []
        place = next(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
        return [*built[:place], *check, *built[place + 1 :]]
