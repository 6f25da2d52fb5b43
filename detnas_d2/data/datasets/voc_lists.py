"""Images of a PASCAL VOC dataset: split files, image ids, and the files of an id.

An id is the path of an image below the folder of images without its extension: it names files that
are read and, in a view, files that are written. What leads elsewhere is never used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from detnas_d2.data.checks.image_check import IMAGE_EXTENSIONS
from detnas_d2.data.checks.report import DatasetError
from detnas_d2.data.datasets.sources import VocSource

# "000005 -1": lines of the split files per class, which say whether the class occurs.
_CLASS_COLUMN = re.compile(r"(.*\S)[ \t]+(?:-1|\+?[01])")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True)
class Listed:
    """One image of a list: ``place`` in its file, ``problem`` where the id cannot be used."""

    image_id: str
    place: str
    problem: str = ""


def id_problem(image_id: str) -> str:
    """The fault of an id, "" for one that stays in the folders of its dataset."""
    parts = image_id.split("/")
    if any(ord(sign) < 32 or ord(sign) == 127 for sign in image_id):
        return f"the id {image_id!r} has a control character"
    if image_id.startswith(("/", "\\", "~")) or _DRIVE.match(image_id):
        return f"the id {image_id!r} is an absolute path; expected one below the folder of images"
    if ".." in parts:
        return f"the id {image_id!r} leads out of the folder of images"
    if "" in parts or "." in parts:
        return f"the id {image_id!r} has an empty part or '.'"
    if any(part != part.strip() for part in parts):
        return f"the id {image_id!r} has blanks at the end of a part"
    try:
        image_id.encode()
    except UnicodeEncodeError:
        return f"the id {image_id!r} is not in UTF-8"
    return ""


def split_file(root: str, split: str) -> str:
    """The file that lists the images of a split: a name, or a path below the root to a .txt."""
    if split.endswith(".txt"):
        return os.path.join(root, split)
    return os.path.join(root, "ImageSets", "Main", f"{split}.txt")


def read_list(path: str, known: Callable[[str], bool]) -> tuple[list[Listed], bool]:
    """The images of a split file in its order, and whether VOC's own tools read the same.

    Blank lines, blanks around ids, a byte order mark, the second column of VOC's files per class
    (whose value does not matter: all images count) and extensions of images are passed over.

    Args:
        known: whether an id has an annotation file; what looks like a column or an extension is
            part of the id where it does.

    Raises:
        DatasetError: the file is absent, not UTF-8 or lists nothing.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise DatasetError(f"[missing_annotation_file] {path}: {error.strerror}") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        broken = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"[broken_annotation_file] {path}, line {broken}: not UTF-8 ({error.reason}); save the "
            "list of images as UTF-8"
        ) from error
    plain = not text.startswith("\ufeff")
    listed = []
    lines = re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff"))
    if not lines[-1]:
        del lines[-1]
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if not entry:
            plain = False
            continue
        image_id = _image_id(entry, known)
        plain = plain and image_id == entry
        listed.append(Listed(image_id, f"line {number}", id_problem(image_id)))
    if not listed:
        raise DatasetError(f"[broken_annotation_file] {path}: the split is empty")
    return listed, plain


def _image_id(entry: str, known: Callable[[str], bool]) -> str:
    column = _CLASS_COLUMN.fullmatch(entry)
    forms = [entry, *([column[1]] if column else [])]
    for form in tuple(forms):
        stem, extension = os.path.splitext(form)
        if extension.lower() in (*IMAGE_EXTENSIONS, ".xml"):
            forms.append(stem)
    for form in forms:
        if not id_problem(form) and known(form):
            return form
    return forms[-1]  # no form is there; the message is about this one


def strict_split(source: VocSource) -> list[str]:
    """The ids of a folder in VOC's own layout.

    Raises:
        DatasetError: the split file cannot be read, or an id leads elsewhere.
    """
    path = split_file(source.root, source.split)
    annotations = os.path.join(source.root, "Annotations")
    listed, _ = read_list(path, lambda i: os.path.isfile(os.path.join(annotations, f"{i}.xml")))
    for item in listed:
        if item.problem:
            raise DatasetError(f"[broken_image_entry] {path}, {item.place}: {item.problem}")
    return [item.image_id for item in listed]


class Finder:
    """Finds the file of an id below a folder, with any of some extensions in any case.

    Args:
        extensions: lower case, the preferred one first.
    """

    def __init__(self, folder: str, extensions: Sequence[str]) -> None:
        self.folder = folder
        self.extensions = tuple(extensions)
        self._listings: dict[str, dict[str, str]] = {}
        self._prefixes: dict[str, str] = {}

    def find(self, image_id: str) -> str:
        """Path of the file; of the preferred extension where there is none."""
        place, _, stem = image_id.rpartition("/")
        name = self._listing(place).get(stem, stem + self.extensions[0])
        return self._prefixes[place] + name

    def has(self, image_id: str) -> bool:
        place, _, stem = image_id.rpartition("/")
        return stem in self._listing(place)

    def all(self) -> list[str]:
        """Ids of all files below the folder, sorted."""
        found = []
        for place, _, names in os.walk(self.folder):
            relative = os.path.relpath(place, self.folder)
            found += [os.path.join(relative, stem) for stem in self._stems(names)]
        return sorted(os.path.normpath(image_id) for image_id in found)

    @property
    def folders(self) -> list[str]:
        """Paths of the folders that were looked into."""
        return [os.path.join(self.folder, place) for place in self._listings]

    def _listing(self, place: str) -> dict[str, str]:
        if place not in self._listings:
            folder = self._prefixes[place] = os.path.join(self.folder, place, "")
            names = os.listdir(folder) if os.path.isdir(folder) else []
            self._listings[place] = self._stems(names)
        return self._listings[place]

    def _stems(self, names: Iterable[str]) -> dict[str, str]:
        found: dict[str, tuple[int, bool, str]] = {}
        for name in names:
            stem, extension = os.path.splitext(name)
            lower = extension.lower()
            # macOS leaves "._a.jpg" beside "a.jpg" in archives.
            if lower in self.extensions and not name.startswith("."):
                # ".jpg" before ".JPG" before ".png".
                file = self.extensions.index(lower), extension != lower, name
                if stem not in found or file < found[stem]:
                    found[stem] = file
        return {stem: name for stem, (_, _, name) in found.items()}
