"""Checkpoint files: whole or absent, and harmless to read."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detnas_d2.engine import DetNASCheckpointer
from detnas_d2.engine.checkpoint_files import read_checkpoint
from detnas_d2.modeling import WeightsError


def test_a_failing_save_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(2, 2)
    checkpointer = DetNASCheckpointer(model, str(tmp_path))
    checkpointer.save("model", iteration=1)
    before = (tmp_path / "model.pth").read_bytes()

    def torn(data: object, file: object) -> None:
        file.write(b"half")
        raise OSError(28, "disk full")

    monkeypatch.setattr(torch, "save", torn)
    for name in ("model", "other"):
        with pytest.raises(OSError, match="disk full"):
            checkpointer.save(name)
    monkeypatch.undo()
    assert (tmp_path / "model.pth").read_bytes() == before
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model.pth")
    assert not (tmp_path / "other.pth").exists()
    other = nn.Linear(2, 2)
    assert DetNASCheckpointer(other).load(str(tmp_path / "model.pth"))["iteration"] == 1
    assert torch.equal(other.weight, model.weight)
    checkpointer.save("other")
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model.pth", "other.pth"]


def test_full_disk_is_what_a_failing_save_tells(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpointer = DetNASCheckpointer(nn.Linear(300, 300), str(tmp_path))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: .*model\.pth"):
            checkpointer.save("model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_checkpoint_is_tagged_after_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = DetNASCheckpointer(nn.Linear(2, 2), str(tmp_path))
    order = []
    replace = os.replace

    def recording(source: str, target: str) -> None:
        replace(source, target)
        order.append(os.path.basename(target))

    monkeypatch.setattr(os, "replace", recording)
    checkpointer.save("model")
    assert order == ["model.pth", "last_checkpoint"]


class Malicious:
    def __reduce__(self) -> tuple:
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("wrap", [lambda bad: bad, lambda bad: {"model": {"weight": bad}}])
def test_pickled_code_is_refused(wrap: object, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(wrap(Malicious())))
    with pytest.raises(WeightsError, match=r"bad.pkl is no .*refused to load (posix|nt)\.system"):
        DetNASCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "bad.pkl"))
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickled_arrays_are_read(protocol: int, tmp_path: Path) -> None:
    weights = {"weight": np.arange(4.0, dtype=np.float32).reshape(2, 2), "bias": np.ones(2, "f4")}
    data = {"model": weights, "__author__": "test", "scale": np.float32(2)}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(data, protocol=protocol))
    model = nn.Linear(2, 2)
    DetNASCheckpointer(model).load(str(tmp_path / "zoo.pkl"))
    assert model.weight.tolist() == [[0, 1], [2, 3]] and model.bias.tolist() == [1, 1]


def test_caffe2_blobs_match_by_name(tmp_path: Path) -> None:
    blobs = {"weight": np.full((2, 2), 3, "f4"), "bias": np.zeros(2, "f4")}
    data = {"blobs": {**blobs, "weight_momentum": np.ones((2, 2), "f4")}}
    (tmp_path / "caffe.pkl").write_bytes(pickle.dumps(data))
    model = nn.Linear(2, 2)
    DetNASCheckpointer(model).load(str(tmp_path / "caffe.pkl"))
    assert (model.weight == 3).all() and (model.bias == 0).all()


def test_code_in_a_torch_file_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}, "extra": Malicious()}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"bad.pth is no .*[Ww]eights.only"):
        DetNASCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "bad.pth"))
    assert not os.path.exists("hacked")


def test_weights_for_every_part(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    state = model.state_dict()
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "whole.pth")
    DetNASCheckpointer(model).load_all(str(tmp_path / "whole.pth"))
    state["0.weight"] = torch.zeros(2, 1, 3, 3)
    del state["1.running_var"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"part\.pth.*in part only \(2 .*0\.weight is .*1\.run"):
        DetNASCheckpointer(model).load_all(str(tmp_path / "part.pth"))


def test_advice_to_unpickle_anything_is_not_handed_on(tmp_path: Path) -> None:
    (tmp_path / "photo.pth").write_bytes(b"\xff\xd8\xff\xe0 no pickle")
    torch.save({"model": tmp_path}, tmp_path / "path.pth")
    for name, reason in (
        ("photo.pth", "expected a dict of tensors that torch.save has written"),
        (
            "path.pth",
            r"it holds a pathlib\.\S+, which loading weights only refuses; expected a",
        ),
    ):
        with pytest.raises(WeightsError, match=f"{name} is no checkpoint .*: {reason}") as caught:
            read_checkpoint(str(tmp_path / name))
        assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 300])
def test_file_that_was_cut_off_is_named(size: int, tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    torch.save(model.state_dict(), tmp_path / "cut.pth")
    os.truncate(tmp_path / "cut.pth", size)
    with pytest.raises(WeightsError, match=r"cut\.pth is no checkpoint that can be read: \w"):
        DetNASCheckpointer(model).load(str(tmp_path / "cut.pth"))


def saved(folder: Path, *iterations: int, keep_every: int = 0) -> DetNASCheckpointer:
    """The checkpointer of a run whose weights are the iteration."""
    model = nn.Linear(1, 1, bias=False)
    checkpointer = DetNASCheckpointer(model, str(folder))
    checkpointer.keep_every = keep_every
    for iteration in iterations:
        nn.init.constant_(model.weight, iteration)
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    return checkpointer


def numbers(folder: Path) -> list[int]:
    return sorted(int(file.stem[6:]) for file in folder.glob("model_0*.pth"))


def test_what_a_killed_run_had_not_removed_goes_with_the_final_one(tmp_path: Path) -> None:
    checkpointer = saved(tmp_path, 3, 5)
    names = ["model_0000003.pth", "model_0000005.pth", "model_final.pth"]
    for resumed_from in ("model_0000005.pth", "model_final.pth"):
        # Killed after 5 was written and before 1 was removed, or after the final one was.
        shutil.copy(tmp_path / "model_0000003.pth", tmp_path / "model_0000001.pth")
        checkpointer.tag_last_checkpoint(resumed_from)
        checkpointer.save_final(5)
        assert sorted(f.name for f in tmp_path.glob("*.pth")) == names


def test_newest_two_and_every_nth_checkpoint_stay(tmp_path: Path) -> None:
    saved(tmp_path, *range(1, 16, 2))
    assert numbers(tmp_path) == [13, 15]
    saved(tmp_path, *range(17, 32, 2), keep_every=6)
    assert numbers(tmp_path) == [17, 23, 29, 31]
    saved(tmp_path, 1, 3, 5)  # a run that starts anew in the folder
    assert numbers(tmp_path) == [3, 5, 17, 23, 29, 31]


def damage_in_place(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "bit":
        place = content.index(b"\x00\x00\x80@") if b"\x00\x00\x80@" in content else 100
        content[place] ^= 1
        file.write_bytes(content)
    elif how == "gone":
        file.unlink()
    else:
        os.truncate(file, {"empty": 0, "cut": len(content) // 2}[how])


@pytest.mark.parametrize("how", ["bit", "gone", "empty", "cut"])
def test_resumes_from_the_checkpoint_before_a_damaged_one(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpointer = saved(tmp_path, 2, 4)
    damage_in_place(tmp_path / "model_0000004.pth", how)
    assert checkpointer.has_checkpoint()
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 2
    assert float(checkpointer.model.weight) == 2
    assert "model_0000004.pth cannot be used" in caplog.text
    assert "resuming from model_0000002.pth instead" in caplog.text


@pytest.mark.parametrize("text", [None, "", "../other/model_0000004.pth"])
def test_lost_last_checkpoint(text: str | None, tmp_path: Path, caplog) -> None:
    checkpointer = saved(tmp_path, 2, 4)
    if text is None:
        (tmp_path / "last_checkpoint").unlink()
    else:
        (tmp_path / "last_checkpoint").write_text(text)
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 4
    assert "last_checkpoint is missing or names no file" in caplog.text


def test_no_whole_checkpoint_starts_anew(tmp_path: Path, caplog) -> None:
    checkpointer = saved(tmp_path, 2)
    damage_in_place(tmp_path / "model_0000002.pth", "cut")
    assert not checkpointer.has_checkpoint()
    assert checkpointer.resume_or_load("", resume=True) == {}
    assert "no checkpoint is whole, starting over" in caplog.text


def test_final_checkpoint_is_written_unless_resumed_from_it(tmp_path: Path) -> None:
    checkpointer = saved(tmp_path, 2, 4)
    checkpointer.save_final(4)
    final = tmp_path / "model_final.pth"
    assert torch.load(final, weights_only=True)["iteration"] == 4
    assert checkpointer.get_checkpoint_file() == str(final)
    before = os.stat(final).st_mtime_ns
    checkpointer.save_final(4)
    assert os.stat(final).st_mtime_ns == before
    damage_in_place(final, "cut")  # a stale or damaged one is written anew
    checkpointer.save_final(4)
    assert torch.load(final, weights_only=True)["iteration"] == 4
