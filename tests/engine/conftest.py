"""Whole runs in a folder of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.catalogs import own_names
from tests.engine.tiny_runs import Configs


@pytest.fixture(autouse=True)
def clean_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has its own folder and registered names, and as many threads as its programs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of the programs that tests start
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with own_names():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def configs(tmp_path: Path) -> Configs:
    return Configs(tmp_path)
