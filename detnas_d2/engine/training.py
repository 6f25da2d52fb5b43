"""Training and evaluation of any model of a config, as Detectron2's ``tools/train_net.py`` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from detnas_d2.engine.architectures import is_relaxed
from detnas_d2.engine.inference import load_trained
from detnas_d2.engine.keeping_time import keep_time
from detnas_d2.engine.scripted import plain_torchscript
from detnas_d2.engine.supernet_check.ending import conclude
from detnas_d2.engine.trainers.bilevel_trainer import GradientSearchTrainer
from detnas_d2.engine.trainers.together import check_together, train_together
from detnas_d2.engine.trainers.trainer import Trainer
from detnas_d2.utils.errors import InputError


def train(cfg: CfgNode, *, resume: bool) -> Any:
    """Trains ``cfg``'s model to its last iteration; returns the last evaluation's results.

    A supernet has those of its check (:func:`conclude`); a relaxed model none: None. The
    architecture parameters of a relaxed model stay as they are (its pre-training).

    Raises:
        InputError: see :func:`check_plain_training`.
        SupernetAtChance: a supernet did not learn; all files are written.
    """
    check_plain_training(cfg)
    trainer = trainer_class(cfg)(cfg)
    keep_time(trainer)
    trainer.resume_or_load(resume=resume)
    results = trainer.train()
    return results if trainer.step.supernet is None else conclude(trainer)


def train_several(configs: Sequence[CfgNode]) -> list[Any]:
    """Trains networks together, or goes on; returns the results of each, see :func:`train`.

    Raises:
        InputError: see :func:`check_together`; or one of them is no plain network.
    """
    check_together(configs)
    trainers = []
    for cfg in configs:
        check_plain_training(cfg)
        seed_all_rng(cfg.SEED + comm.get_rank())  # as a run of its own begins
        trainer = Trainer(cfg)
        if trainer.step.supernet is not None:
            raise InputError(f"{cfg.MODEL.BACKBONE.NAME}: a supernet is trained alone")
        trainer.resume_or_load(resume=True)
        trainers.append(trainer)
    return train_together(trainers)


def check_plain_training(cfg: CfgNode) -> None:
    """Raises InputError if architecture parameters are to learn: a screening or a search."""
    if is_relaxed(cfg) and cfg.HIT_SEARCH.ARCH_START_ITER >= 0:
        raise InputError(
            f"HIT_SEARCH.ARCH_START_ITER is {cfg.HIT_SEARCH.ARCH_START_ITER}: a training expects "
            "-1; what learns architectures is screen_net.py or search_net.py, KIND screen or "
            "gradient of a pipeline"
        )


def trainer_class(cfg: CfgNode) -> type[Trainer]:
    """The trainer of the model of ``cfg``."""
    return GradientSearchTrainer if is_relaxed(cfg) else Trainer


@plain_torchscript()
def evaluate(cfg: CfgNode) -> Any:
    """Evaluates the weights ``MODEL.WEIGHTS`` on ``DATASETS.TEST``.

    Raises:
        ValueError, WeightsError: see :func:`load_trained`.
    """
    model = load_trained(cfg)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results
