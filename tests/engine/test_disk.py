"""The disk that a pipeline needs, told before anything is trained."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from detnas_d2.data import register_datasets
from detnas_d2.engine import train
from detnas_d2.engine.checks import disk
from detnas_d2.engine.checks.disk import DiskError, Need, check_disk, kept_checkpoints, need_of
from detnas_d2.pipeline.run import run_pipeline
from tests.campaigns.tiny import detnas_pipeline
from tests.engine.tiny_runs import Configs, arguments


def free(monkeypatch: pytest.MonkeyPatch, value: int | None) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda folder: value)


@pytest.mark.parametrize("keep_every", [0, 2])
def test_need_is_what_a_training_leaves(keep_every: int, configs: Configs, tmp_path: Path) -> None:
    cfg = configs("faster", "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.MAX_ITER", 5)
    cfg.SOLVER.CHECKPOINT_KEEP_EVERY = keep_every
    os.mkdir(cfg.OUTPUT_DIR)
    register_datasets(cfg)
    train(cfg, resume=False)
    files = sorted(Path(cfg.OUTPUT_DIR).glob("*.pth"))
    kept = ["model_0000003.pth", "model_0000004.pth", "model_final.pth"]
    assert [f.name for f in files] == (["model_0000001.pth"] if keep_every else []) + kept
    assert kept_checkpoints(cfg) == len(files) - 1
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        need = need_of("train", cfg, build_model(cfg))
    # The momentum of operations that no path has taken yet is not there.
    assert 0.6 * need.lasting < sum(f.stat().st_size for f in files) < 1.2 * need.lasting


def test_what_is_there_counts_and_one_more_is_written(tmp_path: Path, monkeypatch) -> None:
    gib = 2**30
    needs = {str(tmp_path / name): Need(3 * gib, gib, 0) for name in "ab"}
    needs[str(tmp_path / "search")] = Need(cache=9 * gib)
    free(monkeypatch, 7 * gib)
    line = check_disk(needs, str(tmp_path / "not" / "there"))
    assert line == (
        "Disk: about 7.0 GiB for checkpoints and up to 9.0 GiB for images while a search runs; "
        "7.0 GiB are free"
    )
    free(monkeypatch, 7 * gib - 1)
    with pytest.raises(DiskError, match=r"there: 7.0 GiB are free, the stages need about 7.0 GiB"):
        check_disk(needs, str(tmp_path / "not" / "there"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model_0000001.pth").write_bytes(b"1")
    check_disk(needs, str(tmp_path))
    free(monkeypatch, None)
    assert "does not tell how much is free" in check_disk(needs, str(tmp_path))
    small = {str(tmp_path / "c"): Need(2 * 2**20, 2**19, 0)}
    assert check_disk(small, str(tmp_path)).startswith("Disk: about 3 MiB for checkpoints; ")


def test_pipeline_is_refused_before_it_starts(tmp_path: Path, monkeypatch, capsys) -> None:
    file = str(detnas_pipeline(tmp_path))
    free(monkeypatch, 2**20)
    with pytest.raises(DiskError, match="0.0 GiB are free"):
        run_pipeline(arguments(file))
    assert not (tmp_path / "runs" / "supernet").exists()
    free(monkeypatch, 2**40)
    capsys.readouterr()
    assert not run_pipeline(arguments(file, dry_run=True))
    printed = capsys.readouterr().out
    assert "searched  not started" in printed and "1024.0 GiB are free" in printed
    assert not (tmp_path / "runs" / "supernet").exists()
