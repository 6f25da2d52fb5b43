"""Atomic files."""

from __future__ import annotations

import errno
import json
import os
import stat
import time

import pytest

from detnas_d2.utils import io as writing
from detnas_d2.utils.io import (
    new_directory,
    new_file,
    remove_partial,
    sync,
    sync_open,
    write_json,
    write_text,
)


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
    def stale(path):
        if os.path.isdir(path):
            raise OSError("stale file handle")

    monkeypatch.setattr(writing, "sync", stale)
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


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_modes_follow_the_umask(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "x", "1")
        with new_directory(str(tmp_path / "d")):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "x").st_mode) == mode
    folder = stat.S_IMODE(os.stat(tmp_path / "d").st_mode)
    assert folder == mode | (mode & 0o444) >> 2  # folders can be entered by who can read them


def test_mode_is_never_changed_after_the_fact(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)
    write_text(tmp_path / "x", "1")
    with new_directory(str(tmp_path / "d")):
        pass
    assert sorted(os.listdir(tmp_path)) == ["d", "x"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EPERM])
def test_folder_that_cannot_be_synced(number, tmp_path, monkeypatch, caplog):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, "no such thing here")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for text in "ab":
        write_text(tmp_path / "x", text)
    assert (tmp_path / "x").read_text() == "b"
    (record,) = caplog.records  # told once
    assert str(tmp_path) in record.message and "cannot be made durable" in record.message


def test_file_that_cannot_be_synced(tmp_path, monkeypatch, caplog):
    def fsync(descriptor):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "x", "a")
    assert caplog.text.count("cannot be made durable") == 1
    with open(tmp_path / "x") as file:
        sync_open(file.fileno(), str(tmp_path / "other"))
    assert "other: what is written there cannot be made durable" in caplog.text


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_failing_disk_is_no_missing_feature(number, tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(number, "disk")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="disk"):
        sync(tmp_path)
    with pytest.raises(OSError, match="disk"):
        write_text(tmp_path / "x", "1")
    assert os.listdir(tmp_path) == []


def test_what_killed_processes_left_is_removed(tmp_path):
    (tmp_path / ".partial-a.pth").write_text("half")
    (tmp_path / ".partial-b").mkdir()
    (tmp_path / ".partial-b" / "x").write_text("half")
    (tmp_path / "x").write_text("whole")
    with new_directory(str(tmp_path / "d")):  # these may still be being written
        assert len(list(tmp_path.glob(".partial-*"))) == 3
    old = time.time() - 48 * 3600
    os.utime(tmp_path / ".partial-b", (old, old))
    with new_directory(str(tmp_path / "e")):
        pass
    assert sorted(os.listdir(tmp_path)) == [".partial-a.pth", "d", "e", "x"]
    remove_partial(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["d", "e", "x"]


def test_suffix_is_kept_for_libraries_that_choose_by_it(tmp_path):
    with new_file(tmp_path / "x.onnx") as temporary:
        assert temporary.endswith(".onnx")


def test_an_error_names_the_file_that_was_asked_for(tmp_path, monkeypatch):
    def full(name, flags, mode):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    monkeypatch.setattr(writing.os, "open", full)
    with pytest.raises(OSError) as caught, new_file(tmp_path / "x.svg"):
        pass
    assert caught.value.filename == str(tmp_path / "x.svg")
