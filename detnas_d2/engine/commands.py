"""Entry points of the projects' commands: the start of a run, and the run.

Before anything is computed a run is looked at as a pipeline looks at each of its stages.
"""

from __future__ import annotations

import argparse
import logging
import os

from detectron2.config import CfgNode
from detectron2.utils import comm

from detnas_d2.config.tools import load_config
from detnas_d2.engine.checkpoint import has_checkpoints
from detnas_d2.engine.checks.disk import check_disk, need_of
from detnas_d2.engine.checks.models import Models, check_names
from detnas_d2.engine.checks.run import check_run, check_weights, weights_warnings
from detnas_d2.engine.defaults import prepare
from detnas_d2.engine.evolution_search import search
from detnas_d2.engine.gradient_search import gradient_search, screen
from detnas_d2.engine.plan import BEST_FILE
from detnas_d2.engine.training import evaluate, train
from detnas_d2.evaluation import CandidateRecord
from detnas_d2.search_space.genotype import Genotype
from detnas_d2.utils.errors import InputError

logger = logging.getLogger(__name__)


def begin(args: argparse.Namespace, kind: str) -> CfgNode:
    """The frozen config of a run: datasets registered, and all that it needs looked at.

    Args:
        kind: see :func:`check_run`.

    Raises:
        InputError: naming the file, key or dataset at fault.
    """
    cfg, models = load_config(args.config_file, args.opts), Models()
    check_names(cfg)
    models.of(cfg)  # reading the data may take minutes
    prepare(cfg, args)
    folder = os.path.dirname(args.config_file)
    check_run(
        cfg,
        kind,
        models,
        config_dir=folder,
        data=kind != "search",  # which looks at its data itself, before it computes anything
        processes=comm.get_world_size(),
    )
    if kind == "evaluate":  # which reads the weights next
        return cfg
    model = models.of(cfg)
    resumes = args.resume and kind != "search" and has_checkpoints(cfg.OUTPUT_DIR)
    if cfg.MODEL.WEIGHTS and not resumes:
        state = check_weights("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS, model, whole=kind == "search")
        for text in weights_warnings(cfg, state):
            logger.warning("MODEL.WEIGHTS %s: %s", cfg.MODEL.WEIGHTS, text)
    if comm.is_main_process():
        logger.info(check_disk({cfg.OUTPUT_DIR: need_of(kind, cfg, model)}, cfg.OUTPUT_DIR))
    return cfg


def train_main(args: argparse.Namespace) -> object:
    """Trains a supernet, a searched or a relaxed network, or evaluates one (``--eval-only``)."""
    cfg = begin(args, "evaluate" if args.eval_only else "train")
    return evaluate(cfg) if args.eval_only else train(cfg, resume=args.resume)


def search_main(args: argparse.Namespace) -> CandidateRecord:
    """Searches the supernet of a config; writes ``best.yaml``; returns the best candidate."""
    cfg = begin(args, "search")
    return search(cfg, resume=args.resume, config_dir=os.path.dirname(args.config_file))


def screen_main(args: argparse.Namespace) -> list[str]:
    """Screens the operations of one part; returns those kept."""
    _refuse_eval_only(args)
    return screen(begin(args, "screen"), resume=args.resume)


def gradient_search_main(args: argparse.Namespace) -> Genotype:
    """Searches the parts of a relaxed network; returns the genotype."""
    _refuse_eval_only(args)
    cfg = begin(args, "gradient")
    return gradient_search(cfg, resume=args.resume, config_dir=os.path.dirname(args.config_file))


def _refuse_eval_only(args: argparse.Namespace) -> None:
    if args.eval_only:
        raise InputError(
            "--eval-only: a relaxed network is decoded, not evaluated; give train_net.py the "
            f"{BEST_FILE} of the search"
        )
