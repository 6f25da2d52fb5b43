"""The files below a folder, by the ends of their names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from detnas_d2.data.recognition.tree import scan
from detnas_d2.utils.errors import InputError

NAMES = (
    "b.JPG", "a.jpg", "a.xml", "a.b.jpg", "classes.txt", "xclasses.txt", "README", "obj.names",
    "sub/a.jpg", "sub/_darknet.labels", "sub/deep/z.txt", "sub-1/a.jpg", "jpg/none",
    ".hidden.jpg", "__MACOSX/a.jpg",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "sub" / "link.jpg").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "sub" / "round").symlink_to(tmp_path / "sub")
    return tmp_path


def test_ends_of_names(folder: Path) -> None:
    tree = scan(str(folder))
    kept = [*NAMES[:13], "sub/link.jpg"]
    everything = [os.path.join(f, name) for f, names in tree.folders.items() for name in names]
    assert sorted(everything) == sorted(kept)
    for ends in ((".jpg",), (".xml", ".jpg"), ("classes.txt", "obj.names", "_darknet.labels")):
        found = tree.with_extension(*ends)
        assert found == [path for path in everything if path.lower().endswith(ends)] and found
    assert tree.images == tree.with_extension(".jpg")


def test_state_follows_every_change(folder: Path) -> None:
    states = [scan(str(folder)).state]
    assert scan(str(folder)).state == states[0]
    (folder / "sub" / "a.jpg").write_text("longer than it was")
    states.append(scan(str(folder)).state)
    os.utime(folder / "a.xml", ns=(0, 1))
    states.append(scan(str(folder)).state)
    (folder / "README").rename(folder / "README.txt")
    states.append(scan(str(folder)).state)
    assert len(set(states)) == 4


def test_a_folder_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(place):
        if os.path.samestat(os.fstat(place), os.stat(folder / "sub" / "deep")):
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="sub/deep: Permission denied"):
        scan(str(folder))
