"""Readies the datasets that a config names."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from detnas_d2.data.checks.inspection import Targets
from detnas_d2.data.checks.report import DatasetError, DatasetReport
from detnas_d2.data.checks.validation import ON_PROBLEM, validate_dataset
from detnas_d2.data.datasets.catalog import declare, is_declared, original_source
from detnas_d2.data.datasets.cuts import HALVES, Shares, SplitSettings
from detnas_d2.data.datasets.digits_dataset import DIGITS_NAMES, DigitsSettings, register_digits
from detnas_d2.data.datasets.keypoints import name_keypoints
from detnas_d2.data.datasets.sources import (
    BOXES_ALONE,
    CocoSource,
    Declaration,
    needs_conversion,
    parse_declaration,
)
from detnas_d2.data.datasets.splits import (
    parent_of,
    register_search_splits,
    register_shares,
)
from detnas_d2.data.datasets.union import parts_of, register_union

CACHE_FOLDER = "data_cache"
"""Folder of derived files below an OUTPUT_DIR, without DATASETS.CACHE_DIR."""

logger = logging.getLogger(__name__)

# Published datasets have a few of these; Detectron2 passes over them.
_TOLERATED_IF_PUBLISHED = ("empty_box", "box_outside")


def register_datasets(cfg: CfgNode, names: Iterable[str] = (), *, checked: bool = True) -> None:
    """Registers every dataset of DATASETS.REGISTER and readies those in use.

    In use are the names in DATASETS.TRAIN and DATASETS.TEST, in HIT_SEARCH.ARCH_TRAIN if
    architecture parameters learn, the texts below SEARCH that are names of datasets,
    SUPERNET.CHECK.VAL, and ``names``. These are checked (DATASETS.INVALID), the demo is drawn and
    search splits are carved where they are named; other declarations are not read. Calling it
    again changes nothing. Every process must call it, after ``launch`` has started them: one per
    machine writes files, the others wait.

    Args:
        checked: False for those who need no more than class names: what Detectron2 can read as it
            is, is left alone, as with DATASETS.INVALID "ignore".

    Raises:
        DatasetError: a malformed declaration, an unknown name, bad data, or nothing to learn from.
    """
    policy = cfg.DATASETS.INVALID
    if policy not in (*ON_PROBLEM, "ignore"):
        raise DatasetError(
            f"DATASETS.INVALID must be one of {(*ON_PROBLEM, 'ignore')}, got {policy!r}"
        )
    owners = declared_owners(cfg)
    for declaration in owners.values():
        declare(declaration.name, declaration.source)
    used = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, *names]
    used += _architecture_sets(cfg)
    used += [text for text in _texts(cfg.get("SEARCH")) if _is_dataset_name(text, owners)]
    used += [cfg.SUPERNET.CHECK.VAL] if "SUPERNET" in cfg and cfg.SUPERNET.CHECK.VAL else []
    ready: set[str] = set()
    reports: dict[str, DatasetReport | None] = {}
    for name in dict.fromkeys(used):
        parent = parent_of(name)
        for part in parts_of(parent):
            owner = owners.get(part)
            whole = owner.name if owner else part
            if whole not in ready:
                reports[whole] = _prepare(cfg, whole, owners, checked=checked)
                ready.add(whole)
            if owner is not None and part not in ready:
                shares = Shares(owner.splits, owner.split_seed)
                register_shares(whole, shares, cache_dir(cfg))
                ready.update(name for name, _ in owner.splits)
        if parent not in ready:
            register_union(parent, cache_dir(cfg))
            ready.add(parent)
        if name != parent and name not in ready:
            split = cfg.DATASETS.SEARCH_SPLIT
            settings = SplitSettings(split.SIZE, split.FRACTION, split.SEED)
            register_search_splits(parent, settings, cache_dir(cfg))
            ready.update(f"{parent}@{half}" for half in HALVES)
    learned = [parent_of(name) for name in (*cfg.DATASETS.TRAIN, *_architecture_sets(cfg))]
    parts = {part for name in learned for part in parts_of(name)}
    parts |= {owners[part].name for part in parts if part in owners}
    for name, report in reports.items():
        _check_objects(name, report, learned=name in parts)
        if name in parts:
            _check_kind(cfg, name)
    for name in dict.fromkeys(used):
        name_keypoints(cfg, name)


def declared_owners(cfg: CfgNode) -> dict[str, Declaration]:
    """Name of a dataset of DATASETS.REGISTER, or of a part of one -> its declaration.

    Raises:
        DatasetError: a malformed declaration, or a name that is taken.
    """
    owners: dict[str, Declaration] = {}
    for position, entry in enumerate(cfg.DATASETS.REGISTER):
        declaration = parse_declaration(entry, position)
        for name in (declaration.name, *(part for part, _ in declaration.splits)):
            if name in DIGITS_NAMES:
                raise DatasetError(f"DATASETS.REGISTER[{position}].NAME: '{name}' is the demo's")
            if owners.setdefault(name, declaration) != declaration:
                raise DatasetError(f"DATASETS.REGISTER[{position}]: '{name}' is declared before")
    return owners


def _architecture_sets(cfg: CfgNode) -> tuple[str, ...]:
    """Datasets that architecture parameters learn from, if they learn."""
    learn = "HIT_SEARCH" in cfg and cfg.HIT_SEARCH.ARCH_START_ITER >= 0
    return tuple(cfg.HIT_SEARCH.ARCH_TRAIN) if learn else ()


def _check_objects(name: str, report: DatasetReport | None, *, learned: bool) -> None:
    if report is None or report.num_annotations > report.num_crowd:
        return
    source = original_source(name)
    place = f" ({source.annotations})" if isinstance(source, CocoSource) else ""
    what = "it has no annotation"
    if report.num_crowd:
        what = f"its {report.num_crowd} annotations are crowd regions ('iscrowd' 1)"
    if learned:
        raise DatasetError(f"Dataset '{name}' has no object to learn from: {what}{place}")
    text = "Dataset '%s' has no object, so its scores are not defined: %s%s"
    logger.warning(text, name, what, place)


def cache_dir(cfg: CfgNode) -> str:
    """Folder of the files that are derived from datasets."""
    return cfg.DATASETS.CACHE_DIR or os.path.join(cfg.OUTPUT_DIR, CACHE_FOLDER)


def _check_kind(cfg: CfgNode, name: str) -> None:
    for key in ("MASK_ON", "KEYPOINT_ON"):
        if cfg.MODEL[key] and isinstance(original_source(name), BOXES_ALONE):
            raise DatasetError(
                f"MODEL.{key} is True, and dataset '{name}' is of a format that is read as boxes "
                "alone; convert it to COCO's, or set the key to False"
            )


def _prepare(
    cfg: CfgNode, name: str, owners: Iterable[str] = (), *, checked: bool = True
) -> DatasetReport | None:
    """The report on a dataset that is checked."""
    if name in DIGITS_NAMES:
        digits = cfg.DATASETS.DIGITS
        settings = DigitsSettings(
            digits.SCENE_SIZE,
            digits.NUM_TRAIN,
            digits.NUM_VAL,
            digits.NUM_TEST,
            digits.PATCH_SIZE,
            digits.PATCHES_PER_DIGIT,
        )
        register_digits(name, settings, cache_dir(cfg))
        return None
    if name not in DatasetCatalog:
        close = difflib.get_close_matches(name, {*DatasetCatalog.list(), *DIGITS_NAMES, *owners})
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise DatasetError(
            f"Dataset '{name}' is neither in DATASETS.REGISTER nor known to Detectron2{hint}"
        )
    source, policy = original_source(name), cfg.DATASETS.INVALID
    if (policy == "ignore" or not checked) and (source is None or not needs_conversion(source)):
        return None
    if policy == "ignore":
        policy = "error"  # reading such a dataset is its check
    if source is None:
        kind = MetadataCatalog.get(name).get("evaluator_type")
        logger.info("Dataset '%s' (evaluator_type %s) is used unchecked", name, kind)
        return None
    return validate_dataset(
        name,
        on_problem=policy,
        cache_dir=cache_dir(cfg),
        decode=cfg.DATASETS.DECODE_CHECK,
        tolerate=() if is_declared(name) else _TOLERATED_IF_PUBLISHED,
        targets=_targets(cfg),
    )


def _targets(cfg: CfgNode) -> Targets:
    return Targets(
        masks=cfg.MODEL.MASK_ON,
        polygons=cfg.INPUT.MASK_FORMAT == "polygon",
        keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else 0,
    )


def _texts(value: Any) -> Iterator[str]:
    """All texts in a tree of config nodes and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _is_dataset_name(text: str, declared: Collection[str]) -> bool:
    if "@search_" in text:
        return True
    known = (*DIGITS_NAMES, *declared)
    return all(part in known or part in DatasetCatalog for part in parts_of(text))
