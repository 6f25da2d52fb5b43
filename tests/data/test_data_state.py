"""What tells that a dataset is another one, and what does not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from detnas_d2.data import data_changes, data_state, register_datasets
from detnas_d2.data.checks import validation
from tests.engine.tiny_runs import Configs

HALVES = ("shapes@search_train", "shapes@search_val")


def state(root: Path, **settings: object) -> dict:
    """State of the data as a new process finds it."""
    cfg: CfgNode = CONFIGS[root]("faster", *(word for pair in settings.items() for word in pair))
    register_datasets(cfg, HALVES)
    return data_state(HALVES)


CONFIGS: dict[Path, Configs] = {}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(validation, "_CONTENT_FILES", {})  # of checks in other tests
    CONFIGS[tmp_path] = Configs(tmp_path)
    return tmp_path


def exchange_images(root: Path) -> None:
    for one, other in (("1.png", "3.png"), ("2.png", "4.png")):
        shutil.copy(root / "shapes" / other, root / "shapes" / one)


def exchange_labels(root: Path) -> None:
    text = (root / "shapes.json").read_text()
    (root / "shapes.json").write_text(text.replace('"category_id": 1', '"category_id": 2'))


@pytest.mark.parametrize("policy", ["error", "ignore"])
@pytest.mark.parametrize(
    ("change", "kind"), [(exchange_images, "images"), (exchange_labels, "annotations")]
)
def test_exchanged_data_are_named(change, kind, policy, root: Path) -> None:
    settings = {"DATASETS.INVALID": policy}
    before = state(root, **settings)
    assert data_changes(state(root, **settings), before) == []
    change(root)
    found = data_changes(state(root, **settings), before)
    # Of unchecked datasets no more is known than the images of the half, here the first one's.
    whole = kind == "annotations" or policy == "error"
    assert found == [f"{kind} of {name!r}" for name in HALVES[: 1 + whole]]


def test_copied_and_touched_data_are_the_same(root: Path) -> None:
    before = state(root)
    for file in (root / "shapes").iterdir():
        os.utime(file, (0, 0))
    shutil.rmtree(root / "cache")
    assert data_changes(state(root), before) == []


def test_states_are_compared_where_both_know_something() -> None:
    then = {"a": {"images": "1", "annotations": "2"}, "b": {"images": "3"}}
    assert data_changes({}, then) == data_changes(then, {}) == data_changes(then, then) == []
    now = {"a": {"images": "0"}, "b": {"images": "4"}, "c": {"images": "5"}}
    assert data_changes(now, json.loads(json.dumps(then))) == ["images of 'a'", "images of 'b'"]
