"""The state of a stage: what its files and its lock tell."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

from detnas_d2.pipeline.state import (
    DONE,
    DONE_FILE,
    FAILED,
    FAILED_FILE,
    NOT_STARTED,
    RUNNING,
    STOPPED,
    read_json,
    running,
    state_of,
)
from detnas_d2.utils.locks import LOCK_FILE, FolderBusy


def _hold(folder: str, held: Event) -> None:
    with running(folder, "mark"):
        held.set()
        signal.pause()


def test_killed_process_leaves_a_stopped_stage(tmp_path: Path) -> None:
    folder = str(tmp_path / "stage")
    assert state_of(folder) == NOT_STARTED
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=_hold, args=(folder, held))
    process.start()
    assert held.wait(30)
    assert state_of(folder) == RUNNING
    assert read_json(folder, LOCK_FILE)["pid"] == process.pid
    busy = pytest.raises(FolderBusy, match=f"process {process.pid} of .* writes into it")
    with busy, running(folder, "mark"):
        raise AssertionError("two processes ran a stage")
    assert state_of(folder) == RUNNING  # and looking at it did not take the lock
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert state_of(folder) == STOPPED
    with running(folder, "mark"):
        assert state_of(folder) == RUNNING
        finish(tmp_path / "stage")
    assert state_of(folder) == DONE


def test_failure_is_kept_until_the_next_start(tmp_path: Path) -> None:
    folder = str(tmp_path)
    with pytest.raises(ValueError), running(folder, "mark"):
        raise ValueError("first line\nSOLVER.BASE_LR is nan")
    assert state_of(folder) == FAILED
    assert read_json(folder, FAILED_FILE)["error"] == "ValueError: SOLVER.BASE_LR is nan"
    with running(folder, "mark"):
        assert not (tmp_path / FAILED_FILE).exists()
    # An interruption is no failure.
    with pytest.raises(KeyboardInterrupt), running(folder, "mark"):
        raise KeyboardInterrupt
    assert state_of(folder) == STOPPED


def finish(folder: Path, text: str = '{"fingerprint": "f", "results": {}, "path": ""}') -> None:
    (folder / DONE_FILE).write_text(text)


@pytest.mark.parametrize("text", ["", '{"fingerprint": "f", "res', "[1]", "{}", "null"])
def test_torn_done_file_is_no_done_stage(text: str, tmp_path: Path) -> None:
    finish(tmp_path)
    assert state_of(str(tmp_path)) == DONE
    finish(tmp_path, text)
    assert state_of(str(tmp_path)) == STOPPED


def test_done_stage_without_its_products_is_stopped(tmp_path: Path) -> None:
    finish(tmp_path)
    weights = tmp_path / "model_final.pth"
    products = (weights.name, "genotype.yaml")
    (tmp_path / "genotype.yaml").write_text("x")
    assert state_of(str(tmp_path), products) == STOPPED
    torch.save({"model": {}}, weights)
    assert state_of(str(tmp_path), products) == DONE
    os.truncate(weights, 300)
    assert state_of(str(tmp_path), products) == STOPPED
