"""Puts sources into Detectron2's catalogs, and tells what these name."""

from __future__ import annotations

from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from detnas_d2.data.checks.report import DatasetError
from detnas_d2.data.datasets.image_folder import class_names, load_image_folder
from detnas_d2.data.datasets.sources import (
    CocoSource,
    FolderSource,
    RegisteredSource,
    Source,
    VocSource,
    source_to_json,
)
from detnas_d2.data.datasets.voc import load_voc

# What was declared (or found in the catalog) under a name, before any cleaning.
_ORIGINALS: dict[str, Source] = {}
_DECLARED: set[str] = set()
# What :func:`install` put under a name, e.g. a cleaned copy.
_INSTALLED: dict[str, Source] = {}


def declare(name: str, source: Source) -> None:
    """Registers a dataset; nothing is read until it is loaded.

    Raises:
        DatasetError: the name is taken by something else.
    """
    known = _ORIGINALS.get(name)
    if known == source:
        return
    if known is not None:
        old, new = source_to_json(known), source_to_json(source)
        changed = [
            f"{key} {old.get(key)!r} -> {new.get(key)!r}"
            for key in {**old, **new}
            if old.get(key) != new.get(key)
        ]
        raise DatasetError(f"Dataset '{name}' is registered already: {', '.join(changed)}")
    if name in DatasetCatalog:
        raise DatasetError(f"DATASETS.REGISTER: the name '{name}' belongs to another dataset")
    _ORIGINALS[name] = source
    _DECLARED.add(name)
    install(name, source)


def is_declared(name: str) -> bool:
    """Whether the dataset was registered by :func:`declare`."""
    return name in _DECLARED


def original_source(name: str) -> Source | None:
    """The source of a registered dataset before cleaning; None where its kind is unknown.

    A name that was registered by hand may stand for other files now.
    """
    if is_declared(name):
        return _ORIGINALS[name]
    source, installed = source_of_metadata(name), _INSTALLED.get(name)
    if source is None:
        return None
    ours = type(installed) is type(source) and {
        **vars(installed),
        "classes": source.classes,
    } == vars(source)
    if not ours or name not in _ORIGINALS:
        _ORIGINALS[name] = source
    return _ORIGINALS[name]


def install(
    name: str,
    source: Source,
    classes: tuple[str, ...] | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Registers ``source``, in place of what the name stood for.

    Args:
        classes: class names where the source does not tell them.
        extra: further metadata.
    """
    metadata = {**(extra or {}), **_metadata(source, classes)}
    _INSTALLED[name] = source
    if name in DatasetCatalog:
        loaded_by = getattr(DatasetCatalog.data[name], "args", None)
        same_metadata = MetadataCatalog.get(name).as_dict() == {"name": name, **metadata}
        if same_metadata and loaded_by == (name, source):
            return
        DatasetCatalog.remove(name)
    if name in MetadataCatalog:
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, partial(load_source, name, source))
    MetadataCatalog.get(name).set(**metadata)


def source_of_metadata(name: str) -> RegisteredSource | None:
    """The source that the metadata of a registered dataset tells; None for other kinds, and for
    data registered by hand whose metadata do not say where everything lies."""
    meta = MetadataCatalog.get(name).as_dict()
    kind, classes = meta.get("evaluator_type"), meta.get("thing_classes")
    if kind == "coco" and meta.get("json_file") and meta.get("image_root") is not None:
        names = tuple(classes) if classes else None
        return CocoSource(meta["json_file"], meta["image_root"], names)
    if kind == "pascal_voc" and {"dirname", "split", "year"} <= meta.keys() and classes:
        return VocSource(meta["dirname"], meta["split"], tuple(classes), meta["year"])
    if kind == "image_classification" and meta.get("image_root") and classes:
        return FolderSource(meta["image_root"], tuple(classes), meta.get("listing"))
    return None


def known_source(name: str, use: str) -> RegisteredSource:
    """:func:`source_of_metadata`; ``use`` says what cannot be done without.

    Raises:
        DatasetError: there is none.
    """
    source = source_of_metadata(name)
    if source is None:
        kind = MetadataCatalog.get(name).get("evaluator_type")
        raise DatasetError(
            f"'{name}' cannot be {use}: its format {kind!r} is none of COCO's, PASCAL VOC's or an "
            "image folder"
        )
    return source


def load_source(name: str, source: Source) -> list[dict[str, Any]]:
    """Detectron2's dataset dicts of a source."""
    if isinstance(source, CocoSource):
        return load_coco_json(source.annotations, source.images, name)
    if isinstance(source, FolderSource):
        return load_image_folder(source)
    if isinstance(source, VocSource):
        return load_voc(source)
    raise DatasetError(f"Dataset '{name}' is read by register_datasets, which was not called")


def _metadata(source: Source, classes: tuple[str, ...] | None) -> dict[str, Any]:
    classes = classes or source.classes
    if isinstance(source, CocoSource):
        metadata: dict[str, Any] = {
            "json_file": source.annotations,
            "image_root": source.images,
            "evaluator_type": "coco",
        }
    elif isinstance(source, FolderSource):
        metadata = {"image_root": source.root, "evaluator_type": "image_classification"}
        if source.listing is not None:
            metadata["listing"] = source.listing
        classes = classes or class_names(source)
    elif isinstance(source, VocSource):
        metadata = {
            "dirname": source.root,
            "split": source.split,
            "year": source.year,
            "evaluator_type": "pascal_voc",
        }
    else:  # becomes COCO's format in its check
        metadata = {}
    if classes is not None:
        metadata["thing_classes"] = list(classes)
    return metadata
