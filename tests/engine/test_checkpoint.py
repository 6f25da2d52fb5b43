"""Checkpoint files: whole or absent, and harmless to read."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detnas_d2.engine import DetNASCheckpointer


def test_a_failing_save_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(2, 2)
    checkpointer = DetNASCheckpointer(model, str(tmp_path))
    checkpointer.save("model", iteration=1)
    before = (tmp_path / "model.pth").read_bytes()

    def torn(data: object, file: object) -> None:
        file.write(b"half")
        raise OSError("disk full")

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
    with pytest.raises(pickle.UnpicklingError, match=r"refused to load (posix|nt)\.system"):
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
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
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
    with pytest.raises(ValueError, match=r"part\.pth.* 2 tensors of the model: 0\.weight, 1\.run"):
        DetNASCheckpointer(model).load_all(str(tmp_path / "part.pth"))
