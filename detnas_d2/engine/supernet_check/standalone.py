"""One path of a supernet trained alone, with the updates that an operation of it gets."""

from __future__ import annotations

import logging
import os
import shutil

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from detnas_d2.config.tools import FREE_KEYS, fingerprint
from detnas_d2.engine.supernet_check.hook import STANDALONE
from detnas_d2.engine.supernet_check.plan import CheckPlan
from detnas_d2.engine.supernet_check.scores import PathScore, score_paths
from detnas_d2.engine.telling import afterwards
from detnas_d2.engine.trainers.schedule import shorten
from detnas_d2.engine.trainers.trainer import Trainer
from detnas_d2.utils.io import write_text

logger = logging.getLogger("detnas_d2.supernet")

_KEY_FILE = "trained.txt"


def standalone_config(cfg: CfgNode, updates: int) -> CfgNode:
    """The supernet's config for a training of ``updates`` iterations, its schedule scaled."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, STANDALONE)
    cfg.SUPERNET.CHECK.PATHS = 0
    cfg.SUPERNET.PATH_SAMPLING = "uniform"  # takes the path's place
    cfg.SOLVER.CHECKPOINT_KEEP_EVERY = 0
    shorten(cfg, updates)
    return cfg


def train_alone(cfg: CfgNode, plan: CheckPlan, updates: int) -> PathScore:
    """Trains the first fixed path alone, or goes on with it; returns its score (collective).

    It is trained inside a supernet of which nothing else runs, with the first weights and batches
    of that one; another path or config than the folder's starts anew.
    """
    path, cfg = plan.paths[0], standalone_config(cfg, updates)
    mark = f"{path}\n{fingerprint(cfg, (*FREE_KEYS, 'SUPERNET', 'SEARCH'))}\n"
    if comm.is_main_process():
        _open_folder(cfg.OUTPUT_DIR, mark)
    comm.synchronize()
    logger.info("Training one path alone for %d updates, to compare with: %s", updates, path)
    torch.manual_seed(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.step.path_sampler = lambda iteration: (path,)
    trainer.resume_or_load(resume=True)
    with afterwards("one path alone"):
        trainer.train()
    return score_paths(plan.whole, trainer.model, [path])[0]


def _open_folder(folder: str, mark: str) -> None:
    """Empties the folder of a training that is not ``mark``."""
    file = os.path.join(folder, _KEY_FILE)
    if os.path.isfile(file):
        with open(file, encoding="utf-8") as text:
            if text.read() == mark:
                return
    shutil.rmtree(folder, ignore_errors=True)
    write_text(file, mark)
