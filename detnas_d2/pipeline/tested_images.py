"""What a finished stage predicted on its test images, and the interval of its AP over them."""

from __future__ import annotations

import logging
import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from detnas_d2.data import register_datasets
from detnas_d2.evaluation.evaluators import coco_file
from detnas_d2.evaluation.matches import Matches, read_matches
from detnas_d2.pipeline.state import read_json
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_json

PREDICTIONS = os.path.join("inference", "coco_instances_results.json")
INTERVAL_FILE = "interval.json"
_AGREE = 0.05  # AP; what another implementation rounds otherwise is far less

logger = logging.getLogger("detnas_d2")


def saved_matches(cfg: CfgNode, folder: str, told: float | None) -> Matches:
    """Matches of the predictions that a stage saved when it was tested.

    Args:
        cfg: of the stage; altered.
        folder: of the stage.
        told: AP that the test told.

    Raises:
        InputError: there are none, or the data are gone or others than they were.
    """
    predictions = os.path.join(folder, PREDICTIONS)
    if not os.path.isfile(predictions):
        raise InputError(f"{predictions}: no predictions were saved")
    if not cfg.DATASETS.TEST:
        raise InputError(f"{folder}: DATASETS.TEST is empty")
    # Of several test sets the last one's predictions are there.
    name = cfg.DATASETS.TEST[-1]
    cfg.defrost()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), (name,)
    cfg.SUPERNET.CHECK.VAL, cfg.HIT_SEARCH.ARCH_START_ITER = "", -1
    cfg.SEARCH.clear()  # names of datasets that nobody needs here
    register_datasets(cfg)
    metadata = MetadataCatalog.get(name)
    inference = os.path.dirname(predictions)
    file = metadata.get("json_file") or os.path.join(inference, f"{name}_coco_format.json")
    if not os.path.isfile(file):
        file = coco_file(name, inference).get("json_file", file)
    matches = read_matches(file, predictions, metadata.get("image_root") or "")
    now = float(matches.ap()[0])
    if told is not None and not abs(told - now) < _AGREE:
        raise InputError(
            f"{predictions}: AP {now:.2f} of {name} as it is now, {told:.2f} when it was tested: "
            "the data or the predictions have changed since"
        )
    return matches


def ap_interval(cfg: CfgNode, folder: str, told: float | None) -> tuple[float, float] | None:
    """95 % interval of a stage's AP, bootstrapped over its test images; None where predictions or
    images are gone. It is kept in the stage's folder, as it takes minutes for COCO.

    Args: see :func:`saved_matches`.
    """
    try:
        status = os.stat(os.path.join(folder, PREDICTIONS))
    except OSError:
        return None
    of = [status.st_mtime_ns, status.st_size]
    kept = read_json(folder, INTERVAL_FILE)
    if kept.get("of") == of and isinstance(kept.get("interval"), list):
        low, high = kept["interval"]
        return float(low), float(high)
    try:
        interval = saved_matches(cfg, folder, told).interval
    except (InputError, OSError) as error:
        logger.warning("no interval over images: %s", error)
        return None
    if interval is not None:
        write_json(os.path.join(folder, INTERVAL_FILE), {"of": of, "interval": list(interval)})
    return interval
