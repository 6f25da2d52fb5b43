"""The images of a COCO-format annotation file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detnas_d2.data.checks.coco_fields import identifier, is_plain, known_identifier, shortened
from detnas_d2.data.checks.image_check import (
    ImageHeader,
    read_headers,
    size_read,
    turned_note,
)

_NAMED = 3  # files that a note names


class CocoImages:
    """Checks the entries of 'images' and their files.

    Args:
        folder: what file names are relative to.
        problem: is called with kind, entry, message and file, and tells whether the entry goes.

    Attributes:
        ids: every id in the file, also those of images that are left out.
        kept: id -> entry, with that id and the size as Detectron2 reads the file.
        files: the names of the files that were looked at.
        fixes, notes, contents: as of ``Inspection``.
    """

    def __init__(self, folder: str, problem: Callable[..., bool]) -> None:
        self.folder = folder
        self._problem = problem
        self.ids: set[int | str] = set()
        self.kept: dict[int | str, dict[str, Any]] = {}
        self.files: list[str] = []
        self.fixes: set[str] = set()
        self.notes: list[str] = []
        self.contents: dict[str, str] = {}

    def check(self, images: Sequence[Any], decode: bool) -> None:
        """Reads the headers of all files, or ``decode`` their pixels."""
        entries = self._distinct_entries(images)
        self.files = [image["file_name"] for _, image in entries]
        paths = [os.path.join(self.folder, file) for file in self.files]
        turned = []
        for (place, image), path, header in zip(
            entries, paths, read_headers(paths, decode), strict=True
        ):
            kept = self._check_image(place, image, path, header)
            if kept is None:
                continue
            self.kept[kept["id"]] = kept
            self.contents[path] = header.content
            if header.orientation != 1:
                turned.append(image["file_name"])
        if not all(map(is_plain, self.kept)):
            self.fixes.add("image ids renumbered from 1")
        repeated = [file for file, number in Counter(self.files).items() if number > 1]
        if repeated:
            self.notes.append(
                f"{len(repeated)} image files have several ids, e.g. {', '.join(repeated[:_NAMED])}"
                ": the objects of one id are missing under the other, and search splits may part "
                "them"
            )
        if turned:
            self.notes.append(turned_note(turned))

    def new_ids(self) -> dict[int | str, int]:
        """Id -> id in the cleaned copy: numbers from 1 if an evaluator would not take them all."""
        if all(map(is_plain, self.kept)):
            return {i: int(i) for i in self.kept}
        return {i: position for position, i in enumerate(self.kept, start=1)}

    def entries(self, new_ids: Mapping[int | str, int]) -> list[dict[str, Any]]:
        """The images of a cleaned copy, with the id in the user's file where that differs."""
        return [
            {
                "id": new_ids[i],
                **{key: image[key] for key in ("file_name", "width", "height")},
                **({} if new_ids[i] == i else {"source_id": i}),
            }
            for i, image in self.kept.items()
        ]

    def _distinct_entries(self, images: Sequence[Any]) -> list[tuple[str, dict[str, Any]]]:
        """(place, entry) of entries whose ids are their own; the ids are normalised."""
        places: dict[int | str, list[int]] = {}
        for position, image in enumerate(images):
            if _is_entry(image):
                places.setdefault(known_identifier(image["id"]), []).append(position)
        self.ids = set(places)
        entries = []
        for position, image in enumerate(images):
            place = f"images[{position}]"
            if not _is_entry(image):
                message = f"'id' and 'file_name' expected, got {shortened(image)}"
                self._problem("broken_image_entry", place, message)
                continue
            key = known_identifier(image["id"])
            same = [images[p]["file_name"] for p in places[key]]
            if len(set(same)) > 1:
                # Whose boxes are the id's? Nobody can tell, so neither image has them.
                self._problem(
                    "duplicate_image_id",
                    place,
                    f"the id {shortened(key)} is that of several files, {shortened(same)}: which "
                    "of them its annotations belong to is unknown",
                )
            elif position != places[key][0]:
                message = f"image id {shortened(key)} occurs twice"
                self._problem("duplicate_image_id", place, message)
            else:
                if isinstance(image["id"], float):
                    self.fixes.add("image ids written as whole numbers")
                entries.append((place, {**image, "id": key}))
        return entries

    def _check_image(
        self, place: str, image: dict[str, Any], path: str, header: ImageHeader
    ) -> dict[str, Any] | None:
        """The entry to keep, None if it has to go."""
        entry = f"{place} (id {shortened(image['id'])})"
        if header.kind:
            self._problem(header.kind, "", f"{header.message} ({entry})", path)
            return None
        stated, size = (image.get("width"), image.get("height")), (header.width, header.height)
        if stated == (None, None):
            self.fixes.add("image sizes filled in")
        elif not all(type(v) in (int, float) for v in stated) or stated != size:
            read = size_read(path, header, stated)
            message = f"width, height {stated[0]!r} x {stated[1]!r}, but {read}"
            self._problem("size_mismatch", entry, message)
            return None
        elif not all(type(v) is int for v in stated):
            self.fixes.add("image sizes written as whole numbers")
        return {**image, "width": size[0], "height": size[1]}


def _is_entry(image: Any) -> bool:
    if not isinstance(image, dict) or identifier(image.get("id")) is None:
        return False
    return isinstance(image.get("file_name"), str) and bool(image["file_name"])
