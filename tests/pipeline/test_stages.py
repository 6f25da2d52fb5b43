"""Values of a stage, and where it may write."""

from __future__ import annotations

from typing import Any

import pytest

from detnas_d2.pipeline.stages import entry_problem

GOOD = {"NAME": "a", "KIND": "train", "CONFIG": "a.yaml"}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"NAME": "random 1"},
        {"NAME": "été-2.b"},
        {"FOLDER": "../imagenet_300M/supernet"},
        {"FOLDER": "../shared"},
        {"FOLDER": "deep/below/here"},
        {"FOLDER": "a/../b"},
        {"OPTS": ["SEED", 1, "SOLVER.STEPS", [1, 2]], "MERGE": ["b"], "RANDOM": 0},
    ],
)
def test_legal_values(keys: dict[str, Any]) -> None:
    assert entry_problem({**GOOD, **keys}) == ""


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("NAME", ["../../evil", "a/b", "/tmp/a", "", " a", ".", "..", 7, None, "n" * 300, "a\nb"]),
        ("NAME", ["a\0b", "a\\b", ["a"], "é" * 150]),
        ("FOLDER", ["../../escape", "/var/tmp/a", "..", ".", "../", "a/../..", "", 3, None]),
        ("FOLDER", ["a/../../../b", "a\0b", "a/" + "n" * 300]),
        ("KIND", [["train"], 3, None]),
        ("CONFIG", [3, {"a": 1}]),
        ("WEIGHTS", [5, ["a"]]),
        ("PATH", [5, ["3x3"]]),
        ("ROW", [["a"], None]),
        ("OPTS", [{"SEED": 1}, "SEED 1", None, [{"SEED": 1}]]),
        ("MERGE", ["search", [3], None]),
        ("RANDOM", ["x", -1, True, 1.5, None]),
    ],
)
def test_other_values_are_named(key: str, values: list[Any]) -> None:
    for value in values:
        assert entry_problem({**GOOD, key: value}).startswith(f"{key} is "), value
