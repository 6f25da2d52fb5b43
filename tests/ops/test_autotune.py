from __future__ import annotations

import json
import multiprocessing
import pickle
import time
from pathlib import Path

import pytest
import torch

from detnas_d2.ops.autotune import REPETITIONS, AutotuneCache, Trial, size_class
from detnas_d2.ops.self_check import Verdict

RIGHT = Verdict("output", 1e-6, 1e-3)


def trial(operators: float, modules: float, verdict: Verdict = RIGHT) -> Trial:
    """Ways that take these milliseconds."""
    return Trial(
        lambda: time.sleep(operators / 1e3), lambda: time.sleep(modules / 1e3), lambda: verdict
    )


def unexpected() -> Trial:
    raise AssertionError("tried again")


def test_faster_way_is_kept_and_never_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "run" / "cache.json"
    cache = AutotuneCache(path)
    assert cache.use_ops("a", lambda: trial(1, 50))
    assert not cache.use_ops("b", lambda: trial(50, 1))
    for again in (cache, AutotuneCache(path)):  # the second as a resumed run
        assert again.use_ops("a", unexpected)
        assert not again.use_ops("b", unexpected)
    assert sorted(p.name for p in path.parent.iterdir()) == ["cache.json", "cache.json.lock"]


def test_file_may_be_edited_but_not_to_anything(tmp_path: Path) -> None:
    path = tmp_path / "fused_ops.json"
    path.write_text(json.dumps({"a": {"use": "modules"}}))
    assert not AutotuneCache(path).use_ops("a", unexpected)
    path.write_text(json.dumps({"a": {"use": "gpu"}}))
    with pytest.raises(ValueError, match='a: use: expected "ops" or "modules", got \'gpu\''):
        AutotuneCache(path)


@pytest.mark.parametrize(
    ("verdict", "why", "warned"),
    [
        (
            Verdict("gradient of the input", 0.5, 0.01),
            "the operators are wrong: relative error 0.5 of gradient of the input, expected at "
            "most 0.01",
            True,
        ),
        (Verdict("", 0.0, 0.0), "rounding hides whether the operators are right", False),
    ],
)
def test_operators_that_may_be_wrong_are_not_timed(
    verdict: Verdict, why: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cache = AutotuneCache()
    assert not cache.use_ops("a", lambda: Trial(unexpected, unexpected, lambda: verdict))
    assert cache.entries == {"a": {"use": "modules", "why": why}}
    assert [why in message for message in caplog.messages] == [True] * warned


def test_without_memory_the_modules_work(caplog: pytest.LogCaptureFixture) -> None:
    def check() -> Verdict:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    cache = AutotuneCache()
    assert not cache.use_ops("a", lambda: Trial(unexpected, unexpected, check))
    assert "not enough memory" in cache.entries["a"]["why"] and not caplog.messages


def test_the_gpu_that_is_tried_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: set[object] = set()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.add(device))
    calls: list[str] = []
    AutotuneCache().use_ops(
        "a", lambda: Trial(lambda: calls.append("a"), lambda: None, lambda: RIGHT, "cuda:1")
    )
    assert waited == {"cuda:1"}
    assert len(calls) == 1 + 10 * REPETITIONS


@pytest.mark.parametrize(
    ("folder", "why"), [("file/run", "Not a directory"), ("x" * 300, "File name too long")]
)
def test_where_nothing_can_be_written_choices_stay_in_memory(
    folder: str, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cache = AutotuneCache(tmp_path / folder / "cache.json")
    assert cache.use_ops("a", lambda: trial(1, 50))
    assert cache.use_ops("a", unexpected)
    assert not cache.use_ops("b", lambda: trial(50, 1))
    (message,) = caplog.messages
    assert f"cache.json cannot be written ({why})" in message


def test_caches_can_be_pickled() -> None:
    cache, key = AutotuneCache(), torch.nn.Identity()
    cache.use_ops("a", lambda: trial(1, 50))
    cache.known[key] = {"b": True}
    other = pickle.loads(pickle.dumps(cache))
    assert other.entries == cache.entries and not other.known
    assert other.use_ops("a", unexpected)
    other.known[key] = {}


def _use(path: Path, tries: Path, number: int, start: object) -> None:
    def tried() -> Trial:
        with tries.open("a") as file:
            file.write("x")
        time.sleep(0.5)  # the other process asks meanwhile
        return trial(1, 1)

    cache = AutotuneCache(path)
    start.wait()
    (path.parent / f"found{number}").write_text(str(cache.use_ops("a", tried)))


def test_processes_try_once_and_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    path, tries = tmp_path / "fused_ops.json", tmp_path / "tries"
    arguments = [(path, tries, number, start) for number in range(2)]
    processes = [context.Process(target=_use, args=args) for args in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    assert tries.read_text() == "x"
    assert (tmp_path / "found0").read_text() == (tmp_path / "found1").read_text()


def test_size_classes() -> None:
    assert [size_class(n) for n in (0, 1, 9600, 11585, 11586, 16384)] == [
        *(1, 1, 8192, 8192, 16384, 16384)
    ]
