"""Set-up that every entry point shares: config, datasets, logging, seeds."""

from __future__ import annotations

import argparse
import logging
import os

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from detnas_d2.command import HideExpected
from detnas_d2.config.tools import FREE_KEYS, differing_keys, load_config
from detnas_d2.data import register_datasets
from detnas_d2.engine.checks.data import (
    check_classes,
    identical_image_warnings,
    training_images_tested,
)
from detnas_d2.engine.screen import Shown, quiet, screen_handlers
from detnas_d2.utils.compat import end_logging
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_text
from detnas_d2.utils.screen import Line

LOGGERS = ("detectron2", "fvcore", "detnas_d2")


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a run: file and overrides read, datasets registered and checked.

    Raises:
        FileNotFoundError, KeyError, ValueError: naming the file, key or dataset at fault.
    """
    cfg = load_config(args.config_file, args.opts)
    prepare(cfg, args)
    return cfg


def prepare(
    cfg: CfgNode, args: argparse.Namespace, *, line: Line | None = None, shown: str = ""
) -> None:
    """Logging, seeds, device and datasets for ``cfg``, which is frozen.

    With ``--resume`` the run goes on with the config at hand, as Detectron2's do; keys that it was
    begun with other values of are warned of.

    Without a GPU, ``MODEL.DEVICE: cuda`` becomes ``cpu``; the number of classes is filled in, see
    :func:`check_classes`.

    Args:
        line, shown: of a program that shows warnings alone, or without a line nothing
            (:func:`quiet`); "": all progress is shown, as by Detectron2, and with ``args.verbose``
            all that is logged.
    """
    on_cpu = fall_back_to_cpu(cfg)
    cfg.freeze()
    end_logging(LOGGERS)  # of the run before, if this process had one
    rank = comm.get_rank()
    # default_setup asks for the first two by the same calls, and gets these.
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="fvcore")
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank)
    logger = setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="detnas_d2")
    for handler in screen_handlers(LOGGERS):
        handler.addFilter(HideExpected())
        if not getattr(args, "verbose", False):
            handler.addFilter(Shown())
    if shown:
        quiet(LOGGERS, line, shown)
    begun_with = _config_before(cfg, args)
    default_setup(cfg, args)
    logger.info("The details are in %s", os.path.join(cfg.OUTPUT_DIR, "log.txt"))
    if on_cpu:
        logging.getLogger("detnas_d2").warning("No GPU found: MODEL.DEVICE is set to cpu.")
    register_datasets(cfg)
    if check_classes(cfg) and comm.is_main_process():
        write_text(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump())  # of default_setup
    if comm.is_main_process():
        changes = differing_keys(begun_with, cfg, FREE_KEYS) if begun_with else []
        if changes:
            text = "; ".join(changes)
            logger.warning("Resumed with other values than it was begun with: %s", text)
        for warning in (*training_images_tested(cfg), *identical_image_warnings(cfg)):
            logging.getLogger("detnas_d2").warning(warning)


def _config_before(cfg: CfgNode, args: argparse.Namespace) -> CfgNode | None:
    """The config in the folder of a run that is resumed; None if there is none that can be read."""
    file = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if not getattr(args, "resume", False) or not os.path.exists(file):
        return None
    try:
        return load_config(file)
    except InputError:  # of another version
        return None


def fall_back_to_cpu(cfg: CfgNode) -> bool:
    """Makes ``MODEL.DEVICE: cuda`` ``cpu`` on a machine without GPU; returns whether it did."""
    on_cpu = cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available()
    if on_cpu:
        cfg.MODEL.DEVICE = "cpu"
    return on_cpu
