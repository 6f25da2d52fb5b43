"""The check of a data set before training, and its memory on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from detnas_d2.data.catalog import install, is_declared, original_source
from detnas_d2.data.coco import inspect_coco
from detnas_d2.data.image_folder import inspect_image_folder
from detnas_d2.data.inspection import Inspection
from detnas_d2.data.report import DatasetError, DatasetReport, Problem, problems_error
from detnas_d2.data.sources import (
    CocoSource,
    FolderSource,
    Source,
    VocSource,
    source_from_json,
    source_to_json,
)
from detnas_d2.data.voc_inspection import inspect_voc
from detnas_d2.data.writers import writer_first
from detnas_d2.files import digest, file_name_of, new_directory, write_json

logger = logging.getLogger(__name__)

DEFAULT_CACHE_DIR = "output/data_cache"
ON_PROBLEM = ("error", "drop")

_STAMP_VERSION = 1
_STAT_CHUNK = 1000
_INSPECTORS = {
    CocoSource: inspect_coco,
    VocSource: inspect_voc,
    FolderSource: inspect_image_folder,
}


def validate_dataset(
    name: str,
    *,
    on_problem: str = "error",
    cache_dir: str = DEFAULT_CACHE_DIR,
    decode: bool = False,
    tolerate: Sequence[str] = (),
) -> DatasetReport:
    """Checks images and annotations of a registered data set, and readies it for use.

    Where entries are dropped, or fields that Detectron2's evaluators need are missing, a cleaned
    copy of the annotations is written below ``cache_dir`` and takes the place of the original in
    the catalogs, so that training and evaluation see the same. The outcome is remembered until
    a file's size or time changes. All processes must call this.

    Args:
        on_problem: "error" raises, "drop" leaves bad entries out with one warning.
        decode: decode every image instead of reading its header.
        tolerate: kinds of problems that are reported only.

    Raises:
        DatasetError: the list of problems, or a file without which nothing can be used.
    """
    if on_problem not in ON_PROBLEM:
        raise ValueError(f"on_problem must be one of {ON_PROBLEM}, got {on_problem!r}")
    if name not in DatasetCatalog:
        raise DatasetError(f"Data set '{name}' is not registered")
    source = original_source(name)
    if source is None:
        raise DatasetError(f"Data set '{name}' is of no format that can be checked")
    key = digest([source_to_json(source), on_problem, sorted(tolerate), os.getcwd()])
    folder = os.path.join(cache_dir, "checked", f"{file_name_of(name)}-{key}")
    check = _Check(name, source, folder, on_problem, decode, frozenset(tolerate))
    stamp = writer_first(check.run)
    report = DatasetReport(
        name,
        stamp["num_images"],
        stamp["num_annotations"],
        tuple(Problem(**problem) for problem in stamp["problems"]),
        on_problem == "drop",
        check.cached,
    )
    if report.problems:
        logger.warning("%s %s", "Left out of" if report.dropped else "Kept in", report)
    elif stamp["fixes"]:
        logger.info("Amended in %s: %s", report, ", ".join(stamp["fixes"]))
    _install(name, source, stamp)
    return report


def _install(name: str, source: Source, stamp: dict[str, Any]) -> None:
    if stamp["source"] is None and isinstance(source, CocoSource) and not is_declared(name):
        return  # registered by others, perhaps with a loader that reads more fields
    ready = source_from_json(stamp["source"]) if stamp["source"] else source
    extra = MetadataCatalog.get(name).as_dict()
    extra.pop("name")
    if isinstance(source, CocoSource):
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
    ) -> None:
        self.name = name
        self.source = source
        self.folder = folder
        self.on_problem = on_problem
        self.decode = decode
        self.tolerate = tolerate
        self.cached = False

    def run(self) -> dict[str, Any]:
        stamp = self._read_stamp()
        if stamp is not None:
            self.cached = True
            return stamp
        logger.info("Checking the images and annotations of data set '%s'", self.name)
        inspection = _INSPECTORS[type(self.source)](self.source, self.decode, self.tolerate)
        fatal = [p for p in inspection.problems if p.kind not in self.tolerate]
        if fatal and (self.on_problem == "error" or not inspection.num_images):
            raise problems_error(self.name, fatal)
        if not inspection.num_images:
            raise DatasetError(f"Data set '{self.name}' holds no image")
        state = tracked_state(inspection.tracked)
        stamp = {
            "version": _STAMP_VERSION,
            "decode": self.decode,
            "state": state,
            "classes": inspection.classes,
            "category_ids": inspection.category_ids,
            "num_images": inspection.num_images,
            "num_annotations": inspection.num_annotations,
            "problems": [asdict(p) for p in inspection.problems],
            "fixes": sorted(inspection.fixes),
            "source": None,
            "tracked": inspection.tracked,
        }
        if fatal or inspection.fixes:
            stamp["source"] = self._write_clean(inspection, state)
        write_json(os.path.join(self.folder, "stamp.json"), stamp)
        return stamp

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
            with open(os.path.join(self.folder, "stamp.json"), encoding="utf-8") as file:
                stamp = json.load(file)
        except (OSError, ValueError):
            return None
        if stamp.get("version") != _STAMP_VERSION or (self.decode and not stamp["decode"]):
            return None
        if stamp["source"] and not os.path.isdir(os.path.join(self.folder, stamp["state"][:12])):
            return None
        return stamp if tracked_state(stamp["tracked"]) == stamp["state"] else None


def tracked_state(tracked: Sequence[tuple[str, Sequence[str]]]) -> str:
    """SHA-256 over names, sizes and modification times of files; of folders, the times."""
    hasher = hashlib.sha256()
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        for base, paths in tracked:
            chunks = [paths[i : i + _STAT_CHUNK] for i in range(0, len(paths), _STAT_CHUNK)]
            for text in pool.map(_file_states, [base] * len(chunks), chunks):
                hasher.update(text.encode())
    return hasher.hexdigest()


def _file_states(base: str, paths: Sequence[str]) -> str:
    lines = []
    for path in paths:
        try:
            status = os.stat(os.path.join(base, path))
        except OSError:
            lines.append(f"{path} absent\n")
            continue
        size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        lines.append(f"{path} {size} {status.st_mtime_ns}\n")
    return "".join(lines)
