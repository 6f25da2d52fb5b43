"""How often ``detnas search`` opens the files of new data."""

from __future__ import annotations

import builtins
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from detnas_d2.data.checks.many_files import read_each, reading_once
from detnas_d2.data.recognition import recognise
from detnas_d2.recipe.decide import read_facts
from detnas_d2.recipe.inputs import Data
from detnas_d2.recipe.one_form import in_one_form
from tests.catalogs import own_names
from tests.data.conftest import write_image
from tests.data.test_formats_alike import NAMES, SIZE, WRITERS, write_voc


@contextmanager
def counted(folder: Path) -> Iterator[Counter[str]]:
    """How often each file below a folder is opened, by its name there."""
    found: Counter[str] = Counter()

    def counting(opener: Callable[..., Any], path: Any, *args: Any, **options: Any) -> Any:
        if isinstance(path, (str, os.PathLike)):
            found[os.path.relpath(os.path.realpath(path), folder)] += 1
        return opener(path, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", partial(counting, open))
        patch.setattr(os, "open", partial(counting, os.open))
        yield found


def look(folder: Path, run: Path) -> tuple[Counter[str], list[bytes], Any]:
    """What is opened when a run begins, its COCO files, and the facts that decide it."""
    with own_names(), counted(folder) as opened:
        found = recognise(str(folder), str(run / "memory"))
        data = Data(found.declarations, found.train, found.test, found.val, found.classes)
        data = in_one_form(data, str(run))
        facts = read_facts(data, str(run))
    return opened, [Path(d["ANNOTATIONS"]).read_bytes() for d in data.declarations], facts


@pytest.mark.parametrize("format", ["voc", *WRITERS])
def test_images_and_labels_are_read_once(tmp_path: Path, format: str) -> None:
    folder = tmp_path / "data"
    for number, name in enumerate(NAMES):
        write_image(folder / "images" / name, *SIZE, seed=number)
    {"voc": write_voc, **WRITERS}[format](folder)
    opened, *expected = look(folder, tmp_path / "thrice")
    with reading_once():
        once, *found = look(folder, tmp_path / "once")
    assert found == expected
    for name in NAMES:
        image, stem = f"images/{name}", os.path.splitext(name)[0]
        assert (opened[image], once[image]) == (3, 1)
        if format == "yolo":
            label = f"labels/{stem}.txt"
            assert (opened[label], once[label]) == (2, 1)
        if format == "voc":  # the dataset itself is loaded besides
            label = f"Annotations/{stem}.xml"
            assert once[label] == opened[label] - 1


def test_what_has_changed_is_read_again(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    read: list[str] = []

    def text(path: str, end: str = "") -> str:
        read.append(os.path.basename(path))
        return Path(path).read_text() + end if os.path.exists(path) else "absent"

    def both(**options: str) -> list[str]:
        return read_each(partial(text, **options), list(map(str, files)), "texts")

    for file in files[:2]:
        file.write_text("1")
    with reading_once():
        assert both() == ["1", "1", "absent"] and read == ["a", "b", "c"]
        with reading_once():
            assert both() == ["1", "1", "absent"] and read[3:] == ["c"]
        files[1].write_text("22")
        files[2].write_text("3")
        assert both() == ["1", "22", "3"] and read[4:] == ["b", "c"]
        assert both(end=".") == ["1.", "22.", "3."] and len(read) == 9
    assert both() == ["1", "22", "3"] and len(read) == 12
