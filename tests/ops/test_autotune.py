from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from detnas_d2.ops.autotune import AutotuneCache, size_class


def sleeping(milliseconds: float):
    return lambda: time.sleep(milliseconds / 1e3)


def test_faster_way_is_kept_and_never_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "run" / "cache.json"
    cache = AutotuneCache(path)
    assert cache.use_ops("a", lambda: (sleeping(1), sleeping(50)))
    assert not cache.use_ops("b", lambda: (sleeping(50), sleeping(1)))

    def unexpected():
        raise AssertionError("measured again")

    for again in (cache, AutotuneCache(path)):  # the second as a resumed run
        assert again.use_ops("a", unexpected)
        assert not again.use_ops("b", unexpected)
    assert list(path.parent.iterdir()) == [path]


def test_file_may_be_edited_but_not_to_anything(tmp_path: Path) -> None:
    path = tmp_path / "fused_ops.json"
    path.write_text(json.dumps({"a": {"use": "modules"}}))
    assert not AutotuneCache(path).use_ops("a", lambda: (sleeping(0), sleeping(50)))
    path.write_text(json.dumps({"a": {"use": "gpu"}}))
    with pytest.raises(ValueError, match='a: use: expected "ops" or "modules", got \'gpu\''):
        AutotuneCache(path)


def test_size_classes() -> None:
    assert [size_class(n) for n in (0, 1, 9600, 11585, 11586, 16384)] == [
        *(1, 1, 8192, 8192, 16384, 16384)
    ]
