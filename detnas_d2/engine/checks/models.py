"""Checks of what a run will need, on the meta device before anything is computed.

Models are built without memory, with their optimizer, schedule and evaluators, so that a mistake in
the config of a stage that runs days later is found in seconds.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    build_model,
)
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from torch import nn

from detnas_d2.config.tools import flatten
from detnas_d2.engine.supernet_check.plan import check_settings, is_checked
from detnas_d2.engine.trainers.trainer import Trainer
from detnas_d2.engine.training import trainer_class
from detnas_d2.evaluation.scoring import evaluator_type
from detnas_d2.modeling import find_supernet
from detnas_d2.search_space.declared import spaces_of
from detnas_d2.search_space.hit_network import HIT_NETWORKS, PARTS
from detnas_d2.utils.errors import InputError

_REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.HIT.BOTTOM_UP": BACKBONE_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": ROI_KEYPOINT_HEAD_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
}
_PRECOMPUTED = "PrecomputedProposals"  # an entry of no registry
_LISTED = 8  # names that an error lists though it guesses which was meant
# What a model is built of, besides cfg.MODEL.
_OTHER_KEYS = ("TEST.DETECTIONS_PER_IMAGE", "INPUT.FORMAT", "VIS_PERIOD")


def check_names(cfg: CfgNode) -> None:
    """Raises InputError if a name in the config is none of a model's parts or no device here."""
    flat = flatten(cfg)
    for key, registry in _REGISTRIES.items():
        if flat[key] and flat[key] != _PRECOMPUTED and flat[key] not in registry:
            _refuse(key, flat[key], [name for name, _ in registry])
    spaces = spaces_of(cfg)
    for key, names in (("MODEL.DETNAS.SPACE", spaces), ("MODEL.HIT.NETWORK", HIT_NETWORKS)):
        if flat[key] not in names:
            _refuse(key, flat[key], list(names))
    for part in cfg.MODEL.HIT.SEARCHABLE_PARTS:
        if part not in PARTS:
            _refuse("MODEL.HIT.SEARCHABLE_PARTS", part, list(PARTS))
    check_device(cfg)


def _refuse(key: str, value: str, names: list[str]) -> None:
    close = difflib.get_close_matches(value, names)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    known = (
        f"the {len(names)} known" if close and len(names) > _LISTED else ", ".join(sorted(names))
    )
    raise InputError(f"{key} is {value!r}: expected one of {known}{hint}")


def check_device(cfg: CfgNode) -> None:
    """Raises InputError if ``MODEL.DEVICE`` is a GPU that this machine does not have."""
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}: expected cuda or cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and device.index is not None and device.index >= count:
        raise InputError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}: this machine has {count} GPUs; expected cuda "
            "or cpu"
        )


class Models:
    """Models on the meta device, each built once for all configs that describe the same."""

    def __init__(self) -> None:
        self._built: dict[str, nn.Module] = {}

    def of(self, cfg: CfgNode) -> nn.Module:
        """The model of ``cfg``.

        Raises:
            InputError: it cannot be built.
        """
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "meta", ""
        flat = flatten(cfg)
        described = {k: v for k, v in flat.items() if k.startswith("MODEL.") or k in _OTHER_KEYS}
        key = json.dumps(described, sort_keys=True, default=str)
        if key not in self._built:
            with (
                told("MODEL: the model cannot be built"),
                _silent(),
                torch.random.fork_rng([]),
            ):
                self._built[key] = _build(cfg)
        return self._built[key]


def _build(cfg: CfgNode) -> nn.Module:
    try:
        with torch.device("meta"):
            return build_model(cfg)
    except RuntimeError:  # NotImplementedError, which meta tensors raise, is one
        # Perhaps its code reads numbers from tensors, e.g. by item(); a mistake comes up again.
        cfg.MODEL.DEVICE = "cpu"
        return build_model(cfg)


def check_training(cfg: CfgNode, model: nn.Module, *, evaluation: bool = True) -> None:
    """Optimizer, step and schedule of a training, and how its network will be evaluated.

    Args:
        evaluation: look at the datasets of DATASETS.TEST, or of a supernet's check, which are
            registered.

    Raises:
        InputError: naming what cannot be built or evaluated.
    """
    if not cfg.DATASETS.TRAIN:
        raise InputError("DATASETS.TRAIN is empty: expected the name of a dataset to train on")
    reference, images = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH
    if reference and images % reference:
        raise InputError(
            f"SOLVER.REFERENCE_WORLD_SIZE {reference}: expected a divisor of SOLVER.IMS_PER_BATCH "
            f"{images}"
        )
    trainer = trainer_class(cfg)
    with told("SOLVER: the training cannot be set up"), _silent():
        optimizer = trainer.build_optimizer(cfg, model)
        trainer.build_step(cfg, model, optimizer)
        trainer.build_lr_scheduler(cfg, optimizer)
    if find_supernet(model) is not None:
        if cfg.TEST.PRECISE_BN.ENABLED:
            raise InputError("TEST.PRECISE_BN.ENABLED: a supernet is recalibrated by the search")
        if evaluation and is_checked(cfg):
            check_settings(cfg)
    elif trainer is Trainer and evaluation:
        check_evaluation(cfg)


def check_evaluation(cfg: CfgNode) -> None:
    """Raises InputError if a dataset of DATASETS.TEST, all registered, has no evaluator."""
    for name in cfg.DATASETS.TEST:
        evaluator_type(name)


@contextmanager
def told(what: str) -> Iterator[None]:
    """Any error of the block is the config's, as nothing but the config went in."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        text: Any = error.args[0] if isinstance(error, KeyError) and error.args else error
        words = " ".join(str(text).split()) or type(error).__name__
        kind = f"{type(error).__name__}: " if isinstance(error, (KeyError, TypeError)) else ""
        raise InputError(f"{what}: {kind}{words}") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing is told about models that are not the ones to be trained."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
