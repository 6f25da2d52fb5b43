"""A trained model, and what applies it to single images."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from torch import nn

from detnas_d2.data import DatasetError, register_datasets
from detnas_d2.data.datasets.registration import declared_owners
from detnas_d2.data.datasets.sources import BOXES_ALONE
from detnas_d2.data.datasets.splits import parent_of
from detnas_d2.data.datasets.union import parts_of
from detnas_d2.engine.checkpoint import DetNASCheckpointer
from detnas_d2.engine.checks.data import fill_class_number
from detnas_d2.layers.batch_norm_mode import batch_norms
from detnas_d2.modeling import find_supernet, use_operators
from detnas_d2.modeling.mixed_block import MixedBlock
from detnas_d2.utils.errors import InputError

logger = logging.getLogger("detnas_d2")


def load_trained(cfg: CfgNode) -> nn.Module:
    """The model of ``cfg`` with the weights ``MODEL.WEIGHTS``, in eval mode.

    Raises:
        ValueError: the config names no weights, or those of a supernet, whose BatchNorm statistics
            are no path's; or it builds a supernet or a relaxed network, which is no network to
            evaluate before a path is chosen.
        WeightsError: the weights are not those of the whole model.
    """
    if not cfg.MODEL.WEIGHTS:
        raise InputError("MODEL.WEIGHTS is empty: expected the file of trained weights")
    model = use_operators(build_model(_with_class_number(cfg)))
    check_network(cfg, model)
    checkpointer = DetNASCheckpointer(model)
    checkpointer.load_all(cfg.MODEL.WEIGHTS)
    if checkpointer.loaded_supernet and batch_norms(model):
        raise InputError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} are a supernet's: its BatchNorm statistics mix all "
            "paths, so results of one path would mean nothing; train the path from these weights "
            "(train_net.py) and take its model_final.pth, or take the search's best_inherited.pth"
        )
    return model.eval()


def check_network(cfg: CfgNode, model: nn.Module) -> None:
    """Raises InputError unless the model of ``cfg`` is a single network, which can be evaluated."""
    if find_supernet(model) is not None:
        raise InputError(
            f"{cfg.MODEL.BACKBONE.NAME} is a supernet and has no path to evaluate: use "
            "search_net.py, or a searched backbone with MODEL.DETNAS.PATH"
        )
    if any(isinstance(module, MixedBlock) for module in model.modules()):
        raise InputError(
            f"{cfg.MODEL.BACKBONE.NAME}: the network holds all candidates at once; use the config "
            "that the search wrote (best.yaml)"
        )


def _with_class_number(cfg: CfgNode) -> CfgNode:
    """``cfg`` with the number of classes of own data, which a training fills in too."""
    if not cfg.DATASETS.REGISTER:
        return cfg
    metadata, cfg = test_metadata(cfg), cfg.clone()
    if metadata.get("thing_classes"):
        fill_class_number(cfg, metadata.name, metadata.thing_classes)
    return cfg


class Predictor(DefaultPredictor):
    """Detectron2's predictor, strict about the weights; called with an image (H, W, 3), BGR.

    Raises:
        ValueError, WeightsError: see :func:`load_trained`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg.clone()
        self.model = load_trained(cfg)
        self.metadata = test_metadata(cfg)
        self.aug = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT


def test_metadata(cfg: CfgNode) -> Metadata:
    """Metadata of the dataset that ``cfg`` is evaluated on, with class names where they are found.

    The images of the dataset are not needed, nor, where the names are declared or Detectron2's,
    its annotations.

    Raises:
        DatasetError: a wrong entry of DATASETS.REGISTER, or a name that nothing stands for.
    """
    names = cfg.DATASETS.TEST or cfg.DATASETS.TRAIN
    if not names:
        return Metadata(name="no dataset")
    name = parts_of(parent_of(names[0]))[0]
    owner = declared_owners(cfg).get(name)
    if owner is not None and isinstance(owner.source, BOXES_ALONE) and owner.source.classes:
        return Metadata(name=name, thing_classes=list(owner.source.classes))
    only = cfg.clone()
    only.defrost()
    only.DATASETS.TRAIN, only.DATASETS.TEST = (), (name,)
    only.SEARCH.VAL = only.SEARCH.CALIBRATION.DATASET = ""
    only.HIT_SEARCH.ARCH_TRAIN = ()
    only.SUPERNET.CHECK.VAL = ""
    try:
        register_datasets(only, checked=False)
    except DatasetError as error:
        if name not in DatasetCatalog:
            raise
        logger.warning("No class names, the dataset is not here: %s", error)
        return MetadataCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None:
        try:
            DatasetCatalog.get(name)  # reading COCO annotations names the classes
        except OSError as error:
            logger.warning("No class names, %s cannot be read: %s", name, error)
    return metadata
