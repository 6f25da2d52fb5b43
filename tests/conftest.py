"""What every test does without, because it takes time and decides nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.engine import defaults
from markupsafe import Markup

of_detectron2 = defaults._try_get_key


def ask(cfg: Any, *keys: str, default: Any = None) -> Any:
    """Detectron2's ``_try_get_key``, which writes a whole config as YAML and reads it again for
    each of the keys that ``default_setup`` asks for: a sixth of a run of seconds.
    """
    if isinstance(cfg, CfgNode) and keys[0] in cfg:
        return cfg[keys[0]]
    return of_detectron2(cfg, *keys, default=default)


@pytest.fixture(scope="session", autouse=True)
def quick() -> Iterator[None]:
    """Files need not outlast a loss of power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults, "_try_get_key", ask)
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of a page are made but not drawn, which takes most of its time."""
    drawn = Markup('<svg role="img"></svg>')
    monkeypatch.setattr("detnas_d2.report.search_figures.svg", lambda *figure: drawn)
