"""The check of a dataset before training, and its memory on disk."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from detnas_d2.data.checks.coco import inspect_coco
from detnas_d2.data.checks.csv_boxes import inspect_csv
from detnas_d2.data.checks.inspection import BOXES_ONLY, Inspection, Targets
from detnas_d2.data.checks.report import (
    DatasetError,
    DatasetReport,
    Problem,
    listed,
    nothing_left_error,
    problems_error,
)
from detnas_d2.data.checks.tracked import tracked_state
from detnas_d2.data.checks.voc import inspect_voc
from detnas_d2.data.checks.yolo import inspect_yolo
from detnas_d2.data.datasets.catalog import install, is_declared, original_source
from detnas_d2.data.datasets.image_folder import inspect_image_folder
from detnas_d2.data.datasets.sources import (
    CocoSource,
    CsvSource,
    FolderSource,
    Source,
    VocSource,
    YoloSource,
    source_from_json,
    source_to_json,
)
from detnas_d2.utils.comm import local_main_first
from detnas_d2.utils.garbage import seldom_collected
from detnas_d2.utils.io import digest, file_name_of, new_directory, write_json, write_text

logger = logging.getLogger(__name__)

ON_PROBLEM = ("error", "drop")

_STAMP_VERSION = 2
_STAMP = "stamp.json"
_CONTENTS = "contents.json"
_LISTING = "problems.txt"
_INSPECTORS: dict[type[Source], Callable[..., Inspection]] = {
    CocoSource: inspect_coco,
    VocSource: inspect_voc,
    FolderSource: inspect_image_folder,
    CsvSource: inspect_csv,
    YoloSource: inspect_yolo,
}
# Dataset -> the file of its images' contents, as the last check in this process left it.
_CONTENT_FILES: dict[str, str] = {}


def validate_dataset(
    name: str,
    *,
    on_problem: str = "error",
    cache_dir: str,
    decode: bool = False,
    tolerate: Sequence[str] = (),
    targets: Targets = BOXES_ONLY,
) -> DatasetReport:
    """Checks images and annotations of a registered dataset, and readies it for use.

    Where entries are dropped, or fields that Detectron2's evaluators need are missing, a cleaned
    copy of the annotations is written below ``cache_dir`` and takes the place of the original in
    the catalogs, so that training and evaluation see the same. The outcome is remembered until
    a file's size or time changes. All processes must call this.

    Args:
        on_problem: "error" raises, "drop" leaves bad entries out with one warning.
        decode: decode every image instead of reading its header.
        tolerate: kinds of problems of boxes that are reported only.
        targets: what besides boxes the annotations of COCO's format must hold.

    Raises:
        DatasetError: the list of problems, or a file without which nothing can be used.
    """
    if on_problem not in ON_PROBLEM:
        raise ValueError(f"on_problem must be one of {ON_PROBLEM}, got {on_problem!r}")
    if name not in DatasetCatalog:
        raise DatasetError(f"Dataset '{name}' is not registered")
    source = original_source(name)
    if source is None:
        raise DatasetError(f"Dataset '{name}' is of no format that can be checked")
    key = digest(
        [source_to_json(source), on_problem, sorted(tolerate), asdict(targets), os.getcwd()]
    )
    folder = os.path.join(cache_dir, "checked", f"{file_name_of(name)}-{key}")
    check = _Check(name, source, folder, on_problem, decode, frozenset(tolerate), targets)
    stamp = local_main_first(check.run)
    report = DatasetReport(
        name,
        stamp["num_images"],
        stamp["num_annotations"],
        tuple(Problem(**problem) for problem in stamp["problems"]),
        on_problem == "drop",
        check.cached,
        stamp["num_crowd"],
        os.path.join(folder, _LISTING),
    )
    if report.problems:
        verb = "Left out of" if report.dropped else "Kept in"
        logger.warning("%s %s\n%s", verb, report, listed(report.problems, report.listing))
    if stamp["fixes"]:
        logger.info("Amended in %s: %s", report, ", ".join(stamp["fixes"]))
    for note in stamp["notes"]:
        logger.warning("Dataset '%s': %s", name, note)
    _install(name, source, stamp)
    _CONTENT_FILES[name] = os.path.join(folder, _CONTENTS)
    return report


def contents_of(name: str) -> dict[str, str]:
    """Image file -> what tells its content (``ImageHeader.content``), of a checked dataset."""
    if name not in _CONTENT_FILES:
        return {}
    with open(_CONTENT_FILES[name], encoding="utf-8") as file:
        return json.load(file)


def _install(name: str, source: Source, stamp: dict[str, Any]) -> None:
    if stamp["source"] is None and isinstance(source, CocoSource) and not is_declared(name):
        return  # registered by others, perhaps with a loader that reads more fields
    ready = source_from_json(stamp["source"]) if stamp["source"] else source
    extra = MetadataCatalog.get(name).as_dict()
    extra.pop("name")
    if isinstance(ready, CocoSource):
        # Detectron2 sets this when it loads the data; evaluators built earlier miss it.
        mapping = {category: i for i, category in enumerate(stamp["category_ids"])}
        extra["thing_dataset_id_to_contiguous_id"] = mapping
    install(name, ready, tuple(stamp["classes"]), extra)


class _Check:
    """One check; ``run`` answers from the stamp in ``folder`` where that still holds."""

    def __init__(
        self,
        name: str,
        source: Source,
        folder: str,
        on_problem: str,
        decode: bool,
        tolerate: frozenset[str],
        targets: Targets,
    ) -> None:
        self.name = name
        self.source = source
        self.folder = folder
        self.on_problem = on_problem
        self.decode = decode
        self.tolerate = tolerate
        self.targets = targets
        self.cached = False

    def run(self) -> dict[str, Any]:
        stamp = self._read_stamp()
        if stamp is not None:
            self.cached = True
            return stamp
        logger.info("Checking the images and annotations of dataset '%s'", self.name)
        inspection = self._inspect()
        listing = os.path.join(self.folder, _LISTING)
        if inspection.problems:
            text = "".join(f"{problem}\n" for problem in inspection.problems)
            write_text(listing, text.encode("utf-8", "backslashreplace").decode())
        fatal = [p for p in inspection.problems if p.kind not in self.tolerate]
        if fatal and self.on_problem == "error":
            raise problems_error(self.name, fatal, listing)
        if fatal and not inspection.num_annotations:
            raise nothing_left_error(self.name, fatal, listing)
        if not inspection.num_images:
            raise DatasetError(f"Dataset '{self.name}' holds no image")
        state = tracked_state(inspection.tracked)
        stamp = {
            "version": _STAMP_VERSION,
            "decode": self.decode,
            "state": state,
            "classes": inspection.classes,
            "category_ids": inspection.category_ids,
            "num_images": inspection.num_images,
            "num_annotations": inspection.num_annotations,
            "num_crowd": inspection.num_crowd,
            "problems": [asdict(p) for p in inspection.problems],
            "fixes": sorted(inspection.fixes),
            "notes": inspection.notes,
            "source": None,
            "tracked": inspection.tracked,
        }
        if fatal or inspection.fixes:
            stamp["source"] = self._write_clean(inspection, state)
        write_json(os.path.join(self.folder, _CONTENTS), inspection.contents)
        write_json(os.path.join(self.folder, _STAMP), stamp)
        return stamp

    @seldom_collected()
    def _inspect(self) -> Inspection:
        inspect = _INSPECTORS[type(self.source)]
        targets = {"targets": self.targets} if isinstance(self.source, CocoSource) else {}
        return inspect(self.source, self.decode, self.tolerate, **targets)

    def _write_clean(self, inspection: Inspection, state: str) -> dict[str, Any]:
        # A new state gets a new folder: Detectron2 remembers VOC files by their path.
        folder = os.path.abspath(os.path.join(self.folder, state[:12]))
        with new_directory(folder) as temporary:
            clean = inspection.write_clean(temporary)
        paths = {"coco": "annotations", "voc": "root", "image_folder": "listing"}
        value = source_to_json(clean)
        field = paths[value["format"]]
        return {**value, field: os.path.join(folder, value[field]).rstrip(os.sep)}

    def _read_stamp(self) -> dict[str, Any] | None:
        try:
            with open(os.path.join(self.folder, _STAMP), encoding="utf-8") as file:
                stamp = json.load(file)
        except (OSError, ValueError):
            return None
        if stamp.get("version") != _STAMP_VERSION or (self.decode and not stamp["decode"]):
            return None
        if stamp["source"] and not os.path.isdir(os.path.join(self.folder, stamp["state"][:12])):
            return None
        return stamp if tracked_state(stamp["tracked"]) == stamp["state"] else None
