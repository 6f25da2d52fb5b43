"""What ``auto`` would choose here, tried without a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.evaluation.graph_tape import TapeGraphs


@pytest.fixture
def self_check(benchmark_module):
    return benchmark_module("self_check")


def test_choices_of_blocks_and_graphs(self_check) -> None:
    net = self_check.supernet("detnas_tiny", "cpu")
    path = net.space.uniform_path("5x5")
    x = torch.rand(1, 3, 64, 64)
    found = self_check.choices(net, path, x, TapeGraphs())
    modes = {key.split()[0] for key in found}
    assert modes == {"training", "statistics", "evaluation", "graph"}
    graphs = [key for key in found if key.startswith("graph of ")]
    assert [key.split(",")[0] for key in graphs] == [
        "graph of recalibration", "graph of evaluation"
    ]  # fmt: skip
    assert all(e["use"] in ("ops", "modules", "graph", "calls") for e in found.values())
    assert not any(key in graphs for key in self_check.wrong(found))
    assert not any(k.startswith("graph of") for k in self_check.choices(net, path, x, None))
    found = self_check.choices(net, path, x, TapeGraphs(corrupt=0))
    assert graphs[0] in self_check.wrong(found) and graphs[1] not in self_check.wrong(found)


def test_choices_of_candidates(self_check) -> None:
    found = self_check.choices_of_candidates(torch.rand(1, 12, 9, 8))
    assert len(found) == len(self_check.CANDIDATES) - 1  # no operator takes a dense convolution
    assert not self_check.wrong(found)


def test_what_is_wrong(self_check) -> None:
    found = {
        "a": {"use": "ops", "ops_ms": 1.0, "modules_ms": 2.0},
        "b": {"use": "modules", "why": "the operators are wrong: relative error 1"},
        "c": {"use": "modules", "why": "not enough memory to try the operators"},
        "d": {"use": "modules", "why": "rounding hides whether the operators are right"},
        "e": {"use": "calls", "why": "replayed graphs failed: no"},
    }
    assert self_check.wrong(found) == ["b", "e"]
