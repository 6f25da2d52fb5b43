"""Contents of a dataset in two digests, so that a run is not resumed over data that changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from detectron2.data import DatasetCatalog

from detnas_d2.data.checks.validation import contents_of
from detnas_d2.data.datasets.catalog import source_of_metadata
from detnas_d2.data.datasets.image_folder import list_files
from detnas_d2.data.datasets.sources import (
    CocoSource,
    FolderSource,
    RegisteredSource,
)
from detnas_d2.data.datasets.splits import parent_of
from detnas_d2.data.datasets.union import parts_of
from detnas_d2.data.datasets.voc_lists import split_file, strict_split
from detnas_d2.utils.io import digest, sha256_of

_READ = 4096  # bytes of an image of an unchecked dataset
_THREADS = 16

DataState = dict[str, dict[str, str]]


def data_state(names: Iterable[str]) -> DataState:
    """Dataset -> digests of its "annotations" and "images", wherever these lie.

    Of registered datasets. Images are those of both halves of a search split, as their check saw
    them; of datasets that are not checked, their sizes and first bytes. Annotations of a dataset
    that another project registered are left out.
    """
    return {name: dict(_state_of(name)) for name in dict.fromkeys(names)}


def data_changes(now: DataState, then: DataState) -> list[str]:
    """Texts that name what of the datasets in both states differs, e.g. "annotations of 'a'"."""
    return [
        f"{kind} of {name!r}"
        for name in sorted(now.keys() & then.keys())
        for kind in sorted(now[name].keys() & then[name].keys())
        if now[name][kind] != then[name][kind]
    ]


def _state_of(name: str) -> Iterator[tuple[str, str]]:
    source = source_of_metadata(name)
    if source is not None:
        yield "annotations", _annotations(source)
    contents: dict[str, str] = {}
    for part in parts_of(parent_of(name)):
        contents.update(contents_of(part))
    yield "images", _files_digest(contents or _first_bytes(name))


def _annotations(source: RegisteredSource) -> str:
    if isinstance(source, CocoSource):
        return sha256_of(source.annotations)[:12]
    if isinstance(source, FolderSource):
        return digest(sorted(list_files(source)))
    files = [os.path.join(source.root, "Annotations", f"{i}.xml") for i in strict_split(source)]
    digests = map(sha256_of, (split_file(source.root, source.split), *files))
    return digest(list(digests))


def _files_digest(contents: Mapping[str, str]) -> str:
    """Of files' names, relative to the folder of them all, and contents."""
    if not contents:
        return ""
    root = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in contents])
    found = hashlib.sha256()
    for file in sorted(contents):
        relative = os.path.relpath(os.path.abspath(file), root)
        found.update(f"{relative}\0{contents[file]}\n".encode("utf-8", "surrogateescape"))
    return found.hexdigest()[:12]


def _first_bytes(name: str) -> dict[str, str]:
    files = sorted({d["file_name"] for d in DatasetCatalog.get(name) if "file_name" in d})
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(files, pool.map(_first_bytes_of, files), strict=True))


def _first_bytes_of(file: str) -> str:
    try:
        with open(file, "rb") as image:
            start = image.read(_READ)
            return f"{os.fstat(image.fileno()).st_size} {hashlib.sha256(start).hexdigest()}"
    except OSError:  # the loader tells, if it is asked for
        return "absent"
