"""Whole runs in a folder of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from detnas_d2.data.datasets import catalog
from tests.engine.tiny_runs import Configs


@contextmanager
def own_names() -> Iterator[None]:
    """Names of datasets that are registered in the block are gone after it."""
    before = dict(DatasetCatalog), dict(MetadataCatalog)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "_ORIGINALS", {})
        patch.setattr(catalog, "_DECLARED", set())
        yield
    for registry, content in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        registry.clear()
        registry.update(content)


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
