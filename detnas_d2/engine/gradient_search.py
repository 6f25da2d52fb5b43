"""Screening and search of a Hit-Detector: what runs, and what is written at the end."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from itertools import chain

import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm

from detnas_d2.config.tools import nested, short_yaml
from detnas_d2.engine.architectures import decoded
from detnas_d2.engine.keeping_time import keep_time
from detnas_d2.engine.plan import BEST_FILE, GradientPlan, check_one_size
from detnas_d2.engine.trainers.bilevel_trainer import GradientSearchTrainer
from detnas_d2.search_space.genotype import Genotype
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_text

logger = logging.getLogger("detnas_d2.search")

SUB_SPACE_FILE = "sub_space.yaml"
SCREENING_FILE = "screening.yaml"
GENOTYPE_FILE = "genotype.yaml"


def train_relaxed(cfg: CfgNode, *, resume: bool) -> GradientSearchTrainer:
    """Runs or resumes the training of a relaxed model; returns its trainer, finished."""
    trainer = GradientSearchTrainer(cfg)
    keep_time(trainer)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def screen(cfg: CfgNode, *, resume: bool) -> list[str]:
    """Screens the operations of the one searchable part; returns those kept, best first.

    Writes ``screening.yaml`` (every operation's scores over time) and ``sub_space.yaml``, a
    config fragment with the part's ``MODEL.HIT.OPS``.

    Raises:
        ValueError: ``HIT_SEARCH.SCREENING.ENABLED`` is not set.
    """
    check_screening(cfg)
    screening = train_relaxed(cfg, resume=resume).step.screening
    report = screening.report()
    if comm.is_main_process():
        order = screening.layers.ops
        kept = sorted(report["kept"], key=order.index)
        fragment = nested({f"MODEL.HIT.OPS.{report['part'].upper()}": kept, "VERSION": 2})
        _write_yaml(os.path.join(cfg.OUTPUT_DIR, SCREENING_FILE), report)
        _write_yaml(os.path.join(cfg.OUTPUT_DIR, SUB_SPACE_FILE), fragment)
        logger.info("Screening of the %s keeps %s.", report["part"], ", ".join(report["kept"]))
    comm.synchronize()
    return report["kept"]


def gradient_search(
    cfg: CfgNode, *, resume: bool, config_dir: str = "", retrain_opts: Sequence[str] = ()
) -> Genotype:
    """Searches all relaxed parts together; returns the decoded genotype.

    Writes ``genotype.yaml``, a config fragment with the genotype, and ``best.yaml``, a whole
    config for ``train_net.py``: :meth:`GradientPlan.completed` with the decoded parts fixed.

    Args:
        config_dir, retrain_opts: see :func:`detnas_d2.engine.plan.retrain_config`.

    Raises:
        InputError: architecture parameters never learn (``HIT_SEARCH.ARCH_START_ITER``).
    """
    plan = GradientPlan.from_config(cfg, config_dir, retrain_opts)
    plan.check()
    for warning in plan.warnings():
        logger.warning(warning)
    step = train_relaxed(cfg, resume=resume).step
    genotype, keys = decoded(cfg, step.model)
    if comm.is_main_process():
        _write_yaml(os.path.join(cfg.OUTPUT_DIR, GENOTYPE_FILE), nested({**keys, "VERSION": 2}))
        retrain = plan.completed(list(chain(*keys.items())))
        comment = (
            f"# Decoded from a gradient search: {step.cost.decoded_gmacs():.3f} GMACs in the "
            "searchable layers.\n"
        )
        target = os.path.join(cfg.OUTPUT_DIR, BEST_FILE)
        write_text(target, comment + short_yaml(retrain))
        logger.info("Genotype: %s; written to %s", genotype, target)
    comm.synchronize()
    return genotype


def check_screening(cfg: CfgNode) -> None:
    """Raises InputError unless the config describes a screening."""
    check_one_size(cfg)
    if not cfg.HIT_SEARCH.SCREENING.ENABLED:
        raise InputError("HIT_SEARCH.SCREENING.ENABLED is False: nothing to screen")


def _write_yaml(file: str, tree: dict) -> None:
    write_text(file, yaml.safe_dump(tree, sort_keys=False, width=100))
