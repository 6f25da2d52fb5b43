"""Folders of files derived from datasets, below DATASETS.CACHE_DIR: written once, then reused."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from typing import Any

from detnas_d2.data.checks.tracked import tracked_state
from detnas_d2.data.datasets.image_folder import list_files
from detnas_d2.data.datasets.sources import (
    CocoSource,
    FolderSource,
    RegisteredSource,
    source_to_json,
)
from detnas_d2.data.datasets.voc_lists import split_file, strict_split
from detnas_d2.utils.comm import local_main_first
from detnas_d2.utils.io import digest, file_name_of, new_directory, write_json

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"


def derived_folder(
    cache_dir: str,
    kind: str,
    name: str,
    key: Any,
    write: Callable[[str], None],
) -> str:
    """A folder that ``write`` has filled, made where it is absent or was changed.

    All processes must call this.

    Args:
        kind: of the content, the folder's parent below ``cache_dir``.
        key: JSON-like; all that the content depends on.
        write: fills an empty folder.
    """
    place = f"{file_name_of(name)[:100]}-{digest(key)}"
    folder = os.path.abspath(os.path.join(cache_dir, kind, place))
    local_main_first(lambda: _write_if_needed(folder, write))
    return folder


def source_state(source: RegisteredSource) -> list[Any]:
    """A value that changes when the source, its list of images or its annotations change."""
    return [source_to_json(source), _files_state(source)]


def _files_state(source: RegisteredSource) -> Any:
    if isinstance(source, CocoSource):
        folder, name = os.path.split(source.annotations)
        return tracked_state([(folder, [name])])
    if isinstance(source, FolderSource):
        return list_files(source)
    files = [os.path.join("Annotations", f"{i}.xml") for i in strict_split(source)]
    return tracked_state([(source.root, [split_file("", source.split), *files])])


def _write_if_needed(folder: str, write: Callable[[str], None]) -> None:
    manifest = os.path.join(folder, _MANIFEST)
    try:
        with open(manifest, encoding="utf-8") as file:
            sizes = json.load(file)["files"]
        if all(os.path.getsize(os.path.join(folder, p)) == size for p, size in sizes.items()):
            return
        logger.warning("Derived files in %s have changed: writing them again", folder)
    except (OSError, ValueError, KeyError):
        pass  # never finished
    shutil.rmtree(folder, ignore_errors=True)
    with new_directory(folder) as temporary:
        write(temporary)
        paths = [
            os.path.relpath(os.path.join(place, name), temporary)
            for place, _, names in os.walk(temporary)
            for name in names
            if name.endswith((".json", ".txt"))
        ]
        sizes = {path: os.path.getsize(os.path.join(temporary, path)) for path in sorted(paths)}
        write_json(os.path.join(temporary, _MANIFEST), {"files": sizes})
