"""Training and evaluation as Detectron2's ``tools/train_net.py`` does them."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from detnas_d2.engine.inference import load_trained
from detnas_d2.engine.scripted import plain_torchscript
from detnas_d2.engine.trainer import Trainer


def train(cfg: CfgNode, *, resume: bool) -> Any:
    """Trains ``cfg``'s model to its last iteration; returns the last evaluation's results."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer.train()


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
