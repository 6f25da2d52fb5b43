"""Whole runs in a folder of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from detnas_d2.data.datasets import catalog
from tests.engine.tiny_runs import Configs


@pytest.fixture(autouse=True)
def clean_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has its own folder and registered names, and as many threads as its programs."""
    before = dict(DatasetCatalog), dict(MetadataCatalog)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of the programs that tests start
    monkeypatch.setattr(catalog, "_ORIGINALS", {})
    monkeypatch.setattr(catalog, "_DECLARED", set())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for registry, content in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        registry.clear()
        registry.update(content)


@pytest.fixture
def configs(tmp_path: Path) -> Configs:
    return Configs(tmp_path)
