"""Checks of the datasets of a run against the model and against each other."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from detnas_d2.config.tools import base_config, load_config
from detnas_d2.data.checks.duplicates import identical_images
from detnas_d2.data.checks.equal_files import LIMIT
from detnas_d2.data.datasets.splits import overlap
from detnas_d2.utils.errors import InputError

logger = logging.getLogger(__name__)

_MODEL_KEYS = {
    "GeneralizedRCNN": "ROI_HEADS",
    "RetinaNet": "RETINANET",
    "HitRetinaNet": "RETINANET",
    "ImageClassifier": "CLASSIFIER",
}
_NAMED = 3  # pairs of files in a warning
_LISTED = 12  # classes in an error


def sharing_images(ones: Iterable[str], others: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs of datasets, one of each list, that share images as far as their names tell."""
    others = tuple(others)
    return [(one, other) for one in ones for other in others if overlap(one, other)]


def training_images_tested(cfg: CfgNode) -> list[str]:
    """A text for each dataset of DATASETS.TEST that shares images with one of DATASETS.TRAIN."""
    return [
        f"DATASETS.TEST {test!r} shares images with DATASETS.TRAIN {train!r}: its scores do not "
        "tell how the network does on new images"
        for test, train in sharing_images(cfg.DATASETS.TEST, cfg.DATASETS.TRAIN)
    ]


def check_classes(cfg: CfgNode) -> bool:
    """Compares the classes of the datasets in use with the model's number and with each other.

    A number that is Detectron2's default (COCO's 80, ImageNet's 1,000 of a classifier) and not that
    of the data becomes that of the data; returns whether it did.

    A label is a position in a dataset's list of classes, so the lists must be the same: a detector
    that learned [cat, dog] calls every cat a dog where the test set lists [dog, cat].

    Raises:
        InputError: naming the keys, the datasets and both numbers or lists.
    """
    key = _MODEL_KEYS.get(cfg.MODEL.META_ARCHITECTURE)
    reference: tuple[str, str, Sequence[str]] | None = None
    filled = False
    for setting, name in _in_use(cfg):
        classes = _classes(name)
        if classes is None:
            continue
        filled = (reference is None and fill_class_number(cfg, name, classes)) or filled
        if key is not None and len(classes) != cfg.MODEL[key].NUM_CLASSES:
            raise InputError(
                f"MODEL.{key}.NUM_CLASSES is {cfg.MODEL[key].NUM_CLASSES}, dataset {name!r} has "
                f"{len(classes)} classes: {', '.join(classes[:5])}{', ...' * (len(classes) > 5)}"
            )
        if reference is None:
            reference = setting, name, classes
        elif list(classes) != list(reference[2]):
            raise InputError(_difference((setting, name, classes), reference))
    return filled


class ClassList(NamedTuple):
    """Classes that a model's last layers tell apart, in their order.

    Attributes:
        head: the node of the config that counts them, or the meta-architecture of other models.
        setting, name: key and dataset that tell them.
    """

    head: str
    setting: str
    name: str
    classes: tuple[str, ...]


def class_list(cfg: CfgNode) -> ClassList | None:
    """The classes of a run whose datasets are registered; None without labels."""
    head = _MODEL_KEYS.get(cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.META_ARCHITECTURE)
    for setting, name in _in_use(cfg):
        if (classes := _classes(name)) is not None:
            return ClassList(head, setting, name, tuple(classes))
    return None


def class_list_problem(one: ClassList | None, other: ClassList | None) -> tuple[str, str] | None:
    """Texts about both lists where models of one kind learn different ones."""
    if one is None or other is None or one.head != other.head or one.classes == other.classes:
        return None
    return _texts(one[1:], other[1:])


def take_class_number(cfg: CfgNode, folder: str) -> None:
    """Fills in the number of classes as a run in ``folder`` has done, without its data."""
    key = _MODEL_KEYS.get(cfg.MODEL.META_ARCHITECTURE)
    file = os.path.join(folder, "config.yaml")
    if key is None or not os.path.isfile(file):
        return
    with contextlib.suppress(OSError, KeyError, ValueError):  # of another version
        cfg.MODEL[key].NUM_CLASSES = load_config(file).MODEL[key].NUM_CLASSES


def fill_class_number(cfg: CfgNode, name: str, classes: Sequence[str]) -> bool:
    """Sets the model's number of classes to that of dataset ``name`` if it is the default.

    Returns whether it changed.
    """
    key = _MODEL_KEYS.get(cfg.MODEL.META_ARCHITECTURE)
    if key is None or len(classes) == cfg.MODEL[key].NUM_CLASSES:
        return False
    if cfg.MODEL[key].NUM_CLASSES != base_config().MODEL[key].NUM_CLASSES:
        return False
    frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.MODEL[key].NUM_CLASSES = len(classes)
    if frozen:
        cfg.freeze()
    logger.info("MODEL.%s.NUM_CLASSES is set to %d, as dataset '%s' has", key, len(classes), name)
    return True


def _classes(name: str) -> Sequence[str] | None:
    """None for datasets of kinds without labels."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None and metadata.get("evaluator_type") == "coco":
        DatasetCatalog.get(name)  # unchecked; loading it tells the names
    return metadata.get("thing_classes")


def training_sets(cfg: CfgNode) -> list[str]:
    """Datasets that weights and, if they learn, architecture parameters learn from."""
    return [*cfg.DATASETS.TRAIN, *_architecture_sets(cfg)]


def _architecture_sets(cfg: CfgNode) -> Sequence[str]:
    node = cfg.get("HIT_SEARCH")  # a config of add_detnas_config has none
    return node.ARCH_TRAIN if node and node.ARCH_START_ITER >= 0 else ()


def _in_use(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """(key, name) of every dataset whose labels a model learns or is scored by."""
    yield from (("DATASETS.TRAIN", name) for name in cfg.DATASETS.TRAIN)
    yield from (("HIT_SEARCH.ARCH_TRAIN", name) for name in _architecture_sets(cfg))
    yield from (("DATASETS.TEST", name) for name in cfg.DATASETS.TEST)
    if cfg.SEARCH.VAL:
        yield "SEARCH.VAL", cfg.SEARCH.VAL
    if cfg.SEARCH.CALIBRATION.DATASET:
        yield "SEARCH.CALIBRATION.DATASET", cfg.SEARCH.CALIBRATION.DATASET
    if cfg.SUPERNET.CHECK.VAL:
        yield "SUPERNET.CHECK.VAL", cfg.SUPERNET.CHECK.VAL


def _texts(
    one: tuple[str, str, Sequence[str]], other: tuple[str, str, Sequence[str]]
) -> tuple[str, str]:
    """The classes of both at the first place where they differ."""
    place = next(
        (i for i, (a, b) in enumerate(zip(one[2], other[2], strict=False)) if a != b),
        min(len(one[2]), len(other[2])),
    )
    first, second = (
        f"{setting} {name!r} has the classes {_shortened(classes, place)}"
        for setting, name, classes in (one, other)
    )
    return first, second


def _difference(one: tuple[str, str, Sequence[str]], other: tuple[str, str, Sequence[str]]) -> str:
    return (
        f"{', but '.join(_texts(one, other))}: labels are positions in these lists, so they must "
        "be the same; write the same CLASSES into both declarations in DATASETS.REGISTER"
    )


def _shortened(classes: Sequence[str], place: int) -> str:
    """All names, or those around the first that differs."""
    start = 0 if len(classes) <= _LISTED else max(0, place - 2)
    text = ", ".join(classes[start : start + _LISTED])
    end = ", ..." if start + _LISTED < len(classes) else ""
    return f"[{'..., ' if start else ''}{text}{end}] ({len(classes)})"


def identical_image_warnings(cfg: CfgNode) -> list[str]:
    """A text for every two datasets that should have different images but share some.

    Datasets that share images by their names (:func:`sharing_images`) have warnings of their own.
    """
    roles: dict[str, Sequence[str]] = {
        "DATASETS.TRAIN": cfg.DATASETS.TRAIN,
        "HIT_SEARCH.ARCH_TRAIN": _architecture_sets(cfg),
        "SEARCH.VAL": [cfg.SEARCH.VAL] if cfg.SEARCH.VAL else [],
        "SUPERNET.CHECK.VAL": [cfg.SUPERNET.CHECK.VAL] if cfg.SUPERNET.CHECK.VAL else [],
        "DATASETS.TEST": cfg.DATASETS.TEST,
    }
    settings = list(roles)
    found: dict[tuple[str, str], str] = {}
    for position, learned in enumerate(settings):
        for scored in settings[position + 1 :]:
            told = sharing_images(roles[learned], roles[scored])
            for one, other in product(roles[learned], roles[scored]):
                if (one, other) not in told and (one, other) not in found:
                    found[one, other] = _shared(learned, one, scored, other)
    return [text for text in found.values() if text]


def _shared(learned: str, one: str, scored: str, other: str) -> str:
    pairs = identical_images(one, other)
    if not pairs:
        return ""
    number = len({file for _, file in pairs})
    examples = ", ".join(f"{b} = {a}" for a, b in pairs[:_NAMED])
    return (
        f"{number}{' or more' * (len(pairs) >= LIMIT)} image(s) of {scored} {other!r} are byte by "
        f"byte those of {learned} {one!r}, so that scores favour what was memorised: {examples}"
        f"{', ...' * (len(pairs) > _NAMED)}"
    )
