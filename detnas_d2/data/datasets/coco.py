"""Reads the files of COCO-format annotations."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from detnas_d2.data.checks.coco_fields import identifier, known_identifier, shortened
from detnas_d2.data.checks.report import DatasetError


@dataclass
class CocoFile:
    """The parts of an annotation file that are used.

    ``fixes`` and ``notes`` are as of ``Inspection``: Detectron2 reads plain UTF-8 alone, for
    instance.
    """

    path: str
    images: list[Any]
    annotations: list[Any]
    categories: list[Any]
    fixes: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def read_coco(path: str) -> dict[str, Any]:
    """The content of an annotation file; "annotations" is empty where there is none.

    Raises:
        DatasetError: the file is absent, no JSON, or not of COCO's layout.
    """
    data, _ = _load(path)
    return data


def read_file(path: str) -> CocoFile:
    """:func:`read_coco`, and what a cleaned copy has to amend in the file as a whole."""
    data, fixes = _load(path)
    return CocoFile(path, data["images"], data["annotations"], data["categories"], fixes)


def _load(path: str) -> tuple[dict[str, Any], set[str]]:
    fixes: set[str] = set()

    def constant(text: str) -> float:
        fixes.add(f"{text}, which is no JSON, left out")
        return float(text)

    try:
        with open(path, "rb") as file:
            content = file.read()
        encoding = json.detect_encoding(content)
        text = content.decode(encoding)
        if encoding != "utf-8":
            fixes.add(f"{encoding} written as UTF-8")
        del content
        data = json.loads(text, parse_constant=constant)
    except OSError as error:
        raise DatasetError(f"[missing_annotation_file] {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # broken JSON or broken UTF-8
        raise DatasetError(f"[broken_annotation_file] {path}: {error}") from error
    place = f"[broken_annotation_file] {path}: COCO format needs a list"
    if not isinstance(data, dict):
        raise DatasetError(
            f"{place} 'images' and a list 'categories' at the top, got a {type(data).__name__}"
        )
    data.setdefault("annotations", [])
    for key in ("images", "categories", "annotations"):
        if not isinstance(data.get(key), list):
            raise DatasetError(f"{place} '{key}' at the top, got {shortened(data.get(key))}")
    return data, fixes


def category_names(file: CocoFile) -> dict[int | str, str]:
    """Category id -> name, ordered by id.

    Of several categories with one name, those without annotations are left out: exports of some
    tools have a root category that is named like a class. So is a root that is no class: of the
    supercategory "none", itself the supercategory of others, without annotations (Roboflow's).

    Raises:
        DatasetError: naming the entry.
    """
    names: dict[int | str, str] = {}
    for position, category in enumerate(file.categories):
        place = f"[broken_annotation_file] {file.path}, categories[{position}]"
        if not isinstance(category, dict):
            raise DatasetError(f"{place}: 'id' and 'name' expected, got {shortened(category)}")
        key, name = identifier(category.get("id")), category.get("name")
        if key is None:
            value = shortened(category.get("id"))
            raise DatasetError(f"{place}: 'id' must be a number or a text, got {value}")
        if type(name) is int:
            name = str(name)
            file.fixes.add("category names written as texts")
        if not isinstance(name, str) or not name.strip():
            raise DatasetError(f"{place}: 'name' must be a text, got {shortened(name)}")
        if key in names:
            raise DatasetError(f"{place}: the id {key!r} occurs twice")
        if names and isinstance(key, str) != isinstance(next(iter(names)), str):
            raise DatasetError(f"{place}: the id {key!r} is a text or a number unlike those before")
        if type(category["id"]) is float:
            file.fixes.add("category ids written as whole numbers")
        names[key] = name
    if not names:
        raise DatasetError(f"[broken_annotation_file] {file.path}: 'categories' is empty")
    _leave_out_repeated(file, names)
    _leave_out_root(file, names)
    return dict(sorted(names.items()))


def _used(file: CocoFile) -> set[int | str | None]:
    """Ids of the categories that annotations have."""
    return {identifier(a.get("category_id")) for a in file.annotations if isinstance(a, dict)}


def _leave_out_repeated(file: CocoFile, names: dict[int | str, str]) -> None:
    """Takes categories without annotations, whose name others have, out of ``names``."""
    groups: dict[str, list[int | str]] = {}
    for key, name in names.items():
        groups.setdefault(name, []).append(key)
    repeated = {name: keys for name, keys in groups.items() if len(keys) > 1}
    if not repeated:
        return
    used = _used(file)
    for name, keys in repeated.items():
        kept = [key for key in keys if key in used] or keys[-1:]
        if len(kept) > 1:
            raise DatasetError(
                f"[broken_annotation_file] {file.path}, categories: {name!r} occurs twice, with "
                f"annotations of the ids {', '.join(map(repr, kept))}; rename or merge them"
            )
        for key in set(keys) - set(kept):
            del names[key]
        file.fixes.add(f"a second category {name!r} without annotations left out")


def _leave_out_root(file: CocoFile, names: dict[int | str, str]) -> None:
    """Takes a root category that nothing is labelled with out of ``names``."""
    parents = {category.get("supercategory") for category in file.categories}
    for category in file.categories:
        key = known_identifier(category["id"])
        if category.get("supercategory") != "none" or names.get(key, "") not in parents:
            continue
        if key not in _used(file) and len(names) > 1:
            name = names.pop(key)
            file.fixes.add(f"the root category {name!r} without annotations left out")
