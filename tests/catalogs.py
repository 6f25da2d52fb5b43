"""Catalogs of datasets that forget what tests register."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from detnas_d2.data.datasets import catalog


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
