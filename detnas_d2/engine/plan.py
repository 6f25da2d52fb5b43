"""Config that a search's result completes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from detectron2.config import CfgNode

from detnas_d2.config.tools import base_config, load_config
from detnas_d2.engine.architectures import decode_backbones, is_relaxed, searchable_backbone
from detnas_d2.utils.errors import InputError


def retrain_config(cfg: CfgNode, config_dir: str, opts: Sequence[str] = ()) -> CfgNode:
    """The config that ``best.yaml`` is made of: ``RETRAIN_CONFIG`` of ``SEARCH`` (of ``HIT_SEARCH``
    for a relaxed model), or the search's own with a decoded backbone for the searched one.

    Args:
        config_dir: folder that ``RETRAIN_CONFIG`` is relative to.
        opts: KEY, VALUE overrides of the file.

    Raises:
        InputError: the file does not exist, or builds another space or a supernet.
    """
    node = "HIT_SEARCH" if is_relaxed(cfg) else "SEARCH"
    file = cfg[node].RETRAIN_CONFIG
    if not file:
        retrain = cfg.clone()
        retrain.defrost()
        decode_backbones(retrain)
        retrain.MODEL.WEIGHTS = ""
        retrain.MODEL.DEVICE = base_config().MODEL.DEVICE  # not that of this machine
        retrain.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "best")
        return retrain
    retrain = load_config(os.path.join(config_dir, file), opts)
    if retrain.MODEL.DETNAS.SPACE != cfg.MODEL.DETNAS.SPACE:
        raise InputError(
            f"{node}.RETRAIN_CONFIG has MODEL.DETNAS.SPACE {retrain.MODEL.DETNAS.SPACE}, the "
            f"search {cfg.MODEL.DETNAS.SPACE}"
        )
    if searchable_backbone(retrain) and not is_relaxed(cfg):  # which decodes that too
        raise InputError(
            f"{node}.RETRAIN_CONFIG has the backbone {searchable_backbone(retrain)}, expected a "
            "decoded backbone, e.g. build_detnas_fpn_backbone"
        )
    return retrain
