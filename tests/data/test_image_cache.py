"""The file of images: contents, damage, staleness, several processes."""

from __future__ import annotations

import fcntl
import os
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from detnas_d2.data.loaders.image_cache import (
    CachedImage,
    CacheError,
    ImageCache,
    build,
    open_or_build,
    remove,
)

SHAPES = ((3, 4, 5), (1, 7, 2), (3, 6, 6))


def images(count: int = 3) -> Iterator[tuple[str, CachedImage]]:
    for i, shape in enumerate(SHAPES[:count]):
        pixels = np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)
        yield f"{i}.png", CachedImage(pixels, (40 + i, 50))


def unused() -> Iterator[tuple[str, CachedImage]]:
    raise AssertionError("the cache is built though it need not be")
    yield


def opened(path: Path, fingerprint: object = "f", limit: int = 1000) -> ImageCache:
    return open_or_build(str(path), fingerprint, images(), limit)


def test_images_come_back(tmp_path: Path) -> None:
    opened(tmp_path / "deep" / "c")
    found = open_or_build(str(tmp_path / "deep" / "c"), "f", unused(), 1000)
    for cache in (found, pickle.loads(pickle.dumps(found))):
        assert len(cache) == 3 and "3.png" not in cache
        for name, image in images():
            np.testing.assert_array_equal(cache.get(name).pixels, image.pixels)
            assert cache.get(name).original == image.original
            assert not cache.get(name).pixels.flags.writeable
    assert len(pickle.dumps(found)) < 300  # the file's name, not the images
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["c", "c.json", "c.lock"]


@pytest.mark.parametrize(("limit", "count"), [(182, 3), (181, 2), (74, 2), (73, 1), (0, 0)])
def test_limit(tmp_path: Path, limit: int, count: int) -> None:
    assert len(opened(tmp_path / "c", limit=limit)) == count
    assert len(open_or_build(str(tmp_path / "c"), "f", unused(), limit)) == count


@pytest.mark.parametrize("file", ["c", "c.json"])
@pytest.mark.parametrize("place", [0, 5, 59, 60, 100, 181, -1])
def test_a_changed_byte_is_noticed_wherever_it_is(
    tmp_path: Path, file: str, place: int, touch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c"
    intact = opened(path).get("0.png").pixels.copy()
    content = bytearray((tmp_path / file).read_bytes())
    content[place] ^= 4
    (tmp_path / file).write_bytes(content)
    touch(tmp_path / file)
    cache = opened(path)
    assert str(path) in caplog.text and "it is built again" in caplog.text
    np.testing.assert_array_equal(cache.get("0.png").pixels, intact)
    assert len(cache) == 3 and not caplog.clear()
    opened(path)
    assert caplog.text == ""


@pytest.mark.parametrize("file", ["c", "c.json"])
@pytest.mark.parametrize("size", [0, 5, 100, 181, -1])
def test_truncated(tmp_path: Path, file: str, size: int, caplog: pytest.LogCaptureFixture) -> None:
    opened(tmp_path / "c")
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:size])
    assert len(opened(tmp_path / "c")) == 3
    assert "it is built again" in caplog.text


def test_killed_between_file_and_index(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened(tmp_path / "c", {"size": 1})
    index = (tmp_path / "c.json").read_bytes()
    opened(tmp_path / "c", {"size": 2}, limit=100)
    (tmp_path / "c.json").write_bytes(index)
    caplog.clear()
    assert len(opened(tmp_path / "c", {"size": 1})) == 3
    assert "cut off or changed since it was written; it is built again" in caplog.text


def test_stale(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened(tmp_path / "c", {"size": (800, 1333)})
    opened(tmp_path / "c", {"size": (800, 1333)})
    assert caplog.text == ""
    old = opened(tmp_path / "c", {"size": (600, 1333)})
    assert "made of other images, preprocessing, versions or limit" in caplog.text
    opened(tmp_path / "c", limit=100)
    assert old.get("2.png").pixels.shape == (3, 6, 6)  # whoever has it open keeps it


def test_damage_after_opening_is_noticed_when_read(tmp_path: Path, touch) -> None:
    cache = opened(tmp_path / "c")
    with open(tmp_path / "c", "r+b") as file:
        file.write(b"\0\0\0")
    touch(tmp_path / "c")
    with pytest.raises(CacheError, match="cut off or changed"):
        cache.get("0.png")


@pytest.mark.parametrize("size", [0, 100])
def test_cut_off_while_it_is_open(tmp_path: Path, size: int) -> None:
    cache = opened(tmp_path / "c")
    os.truncate(tmp_path / "c", size)
    with pytest.raises(CacheError, match="cut off or changed"):
        cache.get("2.png")
    assert len(opened(tmp_path / "c")) == 3


def test_removed(tmp_path: Path) -> None:
    opened(tmp_path / "c")
    for _ in range(2):
        remove(str(tmp_path / "c"))
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "c").mkdir()
    remove(str(tmp_path / "c"))


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[str, CachedImage]]:
        yield next(images())
        raise ValueError("no such image")

    with pytest.raises(ValueError, match="no such image"):
        open_or_build(str(tmp_path / "c"), "f", broken(), 1000)
    assert [p.name for p in tmp_path.iterdir()] == ["c.lock"]
    with pytest.raises(CacheError, match="No such file"):
        ImageCache(str(tmp_path / "c"))


def test_others_wait_for_the_one_that_builds(tmp_path: Path) -> None:
    path, built = tmp_path / "c", []

    def wait_for_it() -> None:
        built.append(open_or_build(str(path), "f", unused(), 1000))

    with open(str(path) + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=wait_for_it)
        waiting.start()
        time.sleep(0.05)
        assert not built
        build(str(path), "f", images(), 1000)
    waiting.join()
    assert len(built[0]) == 3
