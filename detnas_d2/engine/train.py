"""Training and evaluation as Detectron2's ``tools/train_net.py`` does them."""

from __future__ import annotations

import argparse
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from detnas_d2.engine.checkpoint import DetNASCheckpointer
from detnas_d2.engine.setup import setup
from detnas_d2.engine.trainer import Trainer
from detnas_d2.modeling import find_supernet


def train_main(args: argparse.Namespace) -> Any:
    """Trains the model of a config, or with ``--eval-only`` evaluates it; returns the results."""
    cfg = setup(args)
    return evaluate(cfg) if args.eval_only else train(cfg, resume=args.resume)


def train(cfg: CfgNode, *, resume: bool) -> Any:
    """Trains ``cfg``'s model to its last iteration; returns the last evaluation's results."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer.train()


def evaluate(cfg: CfgNode) -> Any:
    """Evaluates the weights ``MODEL.WEIGHTS`` on ``DATASETS.TEST``.

    Raises:
        ValueError: the config builds a supernet, which has no path to evaluate, or names no
            weights.
        WeightsError: the weights are not those of the whole model.
    """
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty: --eval-only needs trained weights")
    model = Trainer.build_model(cfg)
    if find_supernet(model) is not None:
        raise ValueError(
            f"{cfg.MODEL.BACKBONE.NAME} is a supernet and has no path to evaluate: use "
            "search_net.py, or a searched backbone with MODEL.DETNAS.PATH"
        )
    DetNASCheckpointer(model).load_all(cfg.MODEL.WEIGHTS)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results
