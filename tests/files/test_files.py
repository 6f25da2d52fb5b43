"""Atomic files."""

from __future__ import annotations

import json
import os

import pytest

from detnas_d2 import files
from detnas_d2.files import new_directory, write_json, write_text


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a" / "x.json"
    write_json(str(path), [1])
    with pytest.raises(TypeError):
        write_json(str(path), object())
    with pytest.raises(ValueError):
        write_json(str(path), float("nan"))
    with pytest.raises(UnicodeEncodeError):
        write_text(str(path), "\ud800")
    assert json.loads(path.read_text()) == [1]
    assert os.listdir(tmp_path / "a") == ["x.json"]


def test_a_folder_that_cannot_be_synced_is_what_the_error_tells(tmp_path, monkeypatch):
    def sync(path):
        if os.path.isdir(path):
            raise OSError("stale file handle")

    monkeypatch.setattr(files, "sync", sync)
    with pytest.raises(OSError, match="stale file handle"):
        write_text(tmp_path / "x", "1")
    assert os.listdir(tmp_path) == ["x"]


def test_new_directory(tmp_path):
    target = str(tmp_path / "d" / "e")
    with new_directory(target) as folder:
        write_text(os.path.join(folder, "x"), "1")
        assert not os.path.exists(target)
    # Another process was faster: its folder stays.
    with new_directory(target) as folder:
        write_text(os.path.join(folder, "x"), "2")
    with open(os.path.join(target, "x")) as file:
        assert file.read() == "1"
    with pytest.raises(RuntimeError), new_directory(target + "2"):
        raise RuntimeError
    assert os.listdir(tmp_path / "d") == ["e"]
