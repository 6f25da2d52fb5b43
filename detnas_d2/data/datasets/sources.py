"""Locations of datasets: frozen values made from the config or from Detectron2's metadata."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from detnas_d2.data.checks.report import DatasetError


@dataclass(frozen=True)
class CocoSource:
    """COCO-format detection. ``classes`` None: the category names ordered by id."""

    annotations: str
    images: str
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class VocSource:
    """PASCAL VOC folder with Annotations/, ImageSets/Main/<split>.txt and JPEGImages/.

    ``split`` may also be the path of a .txt file below the root, or "" for every annotation file;
    ``images`` and ``annotations`` are other folders below the root. Such a folder is read through
    a view in the strict layout. ``year`` selects the AP of the evaluation: 2007 eleven points, 2012
    area under the curve.
    """

    root: str
    split: str
    classes: tuple[str, ...]
    year: int = 2012
    images: str = "JPEGImages"
    annotations: str = "Annotations"


@dataclass(frozen=True)
class FolderSource:
    """Classification: one folder per class. ``listing`` (JSON) restricts it to some files."""

    root: str
    classes: tuple[str, ...] | None = None
    listing: str | None = None


@dataclass(frozen=True)
class CsvSource:
    """Boxes in a CSV file. ``classes`` None: the names found, sorted."""

    annotations: str
    images: str
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class YoloSource:
    """A split of a data.yaml. ``classes`` None: its names in its order."""

    data: str
    split: str
    classes: tuple[str, ...] | None = None


RegisteredSource = CocoSource | VocSource | FolderSource
"""Entries of Detectron2's catalogs once a dataset was prepared."""

Source = RegisteredSource | CsvSource | YoloSource

BOXES_ALONE = (VocSource, CsvSource, YoloSource)
"""Formats that have no masks and key points, or whose are not read."""

_FORMATS = {
    "coco": CocoSource,
    "voc": VocSource,
    "image_folder": FolderSource,
    "csv": CsvSource,
    "yolo": YoloSource,
}
# FORMAT -> (required keys, optional keys), besides NAME and FORMAT.
_KEYS = {
    "coco": (("IMAGES", "ANNOTATIONS"), ("CLASSES",)),
    "voc": (("ROOT", "CLASSES"), ("SPLIT", "IMAGES", "ANNOTATIONS", "YEAR")),
    "image_folder": (("ROOT",), ("CLASSES",)),
    "csv": (("IMAGES", "ANNOTATIONS"), ("CLASSES",)),
    "yolo": (("DATA", "SPLIT"), ("CLASSES",)),
}


def needs_conversion(source: Source) -> bool:
    """Whether Detectron2 can read the source only after its check has written another form."""
    if isinstance(source, (CsvSource, YoloSource)):
        return True
    if not isinstance(source, VocSource):
        return False
    usual = (source.images, source.annotations) == ("JPEGImages", "Annotations")
    return not usual or not source.split or source.split.endswith(".txt")


def resolve_path(path: str) -> str:
    """Relative paths start at $DETECTRON2_DATASETS, as Detectron2's own datasets do."""
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    return os.path.join(root, os.path.expanduser(path))


@dataclass(frozen=True)
class Declaration:
    """An entry of DATASETS.REGISTER; ``splits``: (name, share of the images) of parts to make."""

    name: str
    source: Source
    splits: tuple[tuple[str, float], ...] = ()
    split_seed: int = 0


def parse_declaration(entry: Any, position: int) -> Declaration:
    """Reads one entry of DATASETS.REGISTER.

    Raises:
        DatasetError: names the key that is unknown, missing or malformed.
    """
    place = f"DATASETS.REGISTER[{position}]"
    if not isinstance(entry, Mapping):
        raise DatasetError(f"{place} must be a mapping with NAME and FORMAT, got {entry!r}")
    values = dict(entry)
    name = _name(values.pop("NAME", None), f"{place}.NAME")
    place = f"{place} ('{name}')"
    splits = _splits(values.pop("SPLITS", {}), name, f"{place}.SPLITS")
    seed = values.pop("SPLIT_SEED", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise DatasetError(f"{place}.SPLIT_SEED must be a whole number, got {seed!r}")
    format = values.pop("FORMAT", None)
    if not isinstance(format, str) or format not in _FORMATS:
        raise DatasetError(f"{place}.FORMAT must be one of {sorted(_FORMATS)}, got {format!r}")
    required, optional = _KEYS[format]
    for key in values:
        if key not in required + optional:
            raise DatasetError(
                f"{place}: unknown key {key!r}; FORMAT {format} takes {', '.join(required)} "
                f"and optionally {', '.join((*optional, 'SPLITS', 'SPLIT_SEED'))}"
            )
    for key in required:
        if key not in values:
            raise DatasetError(f"{place}: key {key} is missing; FORMAT {format} needs it")
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key == "CLASSES":
            arguments["classes"] = _classes(value, f"{place}.CLASSES")
        elif key == "YEAR":
            if value not in (2007, 2012):
                raise DatasetError(f"{place}.YEAR must be 2007 or 2012, got {value!r}")
            arguments["year"] = value
        elif key == "SPLIT" or (format == "voc" and key in ("IMAGES", "ANNOTATIONS")):
            arguments[key.lower()] = _text(value, f"{place}.{key}")
        else:
            arguments[key.lower()] = resolve_path(_text(value, f"{place}.{key}"))
    if format == "voc":
        _check_split(arguments.setdefault("split", ""), f"{place}.SPLIT")
    return Declaration(name, _FORMATS[format](**arguments), splits, seed)


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DatasetError(f"{place} must be a non-empty text, got {value!r}")
    return value


def _name(value: Any, place: str) -> str:
    name = _text(value, place)
    for sign, use in (("@", "search splits"), ("+", "unions")):
        if sign in name:
            raise DatasetError(f"{place}: '{sign}' is kept for {use} of datasets, got {name!r}")
    return name


def _splits(value: Any, name: str, place: str) -> tuple[tuple[str, float], ...]:
    if not isinstance(value, Mapping):
        raise DatasetError(f"{place} must map names to shares, e.g. {{a: 0.8, b: 0.2}}: {value!r}")
    parts = []
    for part, share in value.items():
        if _name(part, place) == name:
            raise DatasetError(f"{place}: '{name}' is the name of the whole")
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise DatasetError(f"{place}.{part} must be a share in (0, 1], got {share!r}")
        parts.append((part, float(share)))
    if sum(share for _, share in parts) > 1 + 1e-9:
        raise DatasetError(f"{place}: the shares {dict(parts)} sum to more than 1")
    return tuple(parts)


def _check_split(split: str, place: str) -> None:
    if os.path.isabs(split) or ".." in split.split("/") or not split.isprintable():
        raise DatasetError(
            f"{place} must be the name of a split file or its path below ROOT, got {split!r}"
        )


def _classes(value: Any, place: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise DatasetError(f"{place} must be a non-empty list of names, got {value!r}")
    for item in value:
        # Detectron2's VOC evaluator makes a file per class.
        if not isinstance(item, str) or not item.strip() or "/" in item:
            raise DatasetError(f"{place}: {item!r} is not a class name (a text without '/')")
    if len(set(value)) != len(value):
        raise DatasetError(f"{place} has duplicates: {list(value)}")
    return tuple(value)


def declaration_of(
    name: str, source: Source, classes: Sequence[str] | None = None
) -> dict[str, Any]:
    """An entry of DATASETS.REGISTER, with CLASSES where they are given."""
    format = next(name for name, kind in _FORMATS.items() if isinstance(source, kind))
    values = {
        field.name.upper(): value
        for field in fields(source)
        if field.name != "classes" and (value := getattr(source, field.name)) != field.default
    }
    if values.get("SPLIT") == "":  # every annotation file
        del values["SPLIT"]
    if classes is not None:
        values["CLASSES"] = list(classes)
    return {"NAME": name, "FORMAT": format, **values}


def source_to_json(source: Source) -> dict[str, Any]:
    """A mapping with the format's name, readable by :func:`source_from_json`."""
    format = next(name for name, kind in _FORMATS.items() if isinstance(source, kind))
    return {"format": format, **asdict(source)}


def source_from_json(value: Mapping[str, Any]) -> Source:
    """Inverse of :func:`source_to_json`."""
    arguments = {key: item for key, item in value.items() if key != "format"}
    if arguments.get("classes") is not None:
        arguments["classes"] = tuple(arguments["classes"])
    return _FORMATS[value["format"]](**arguments)
