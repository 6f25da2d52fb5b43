"""The truth set of the demo's space that ships, and the certificate that was made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detnas_d2.config.tools import load_config
from detnas_d2.pipeline.certificate import certify
from detnas_d2.programs.fidelity_report import record
from detnas_d2.search.cost_draws import BAND
from detnas_d2.search.truth import TruthSet, read_truth
from detnas_d2.search_space.costs import build_cost_table
from detnas_d2.search_space.space import get_space

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def truth() -> TruthSet:
    return read_truth(str(RESULTS / "truth_demo.json"))


def test_it_is_whole_and_of_the_demo_of_today(truth: TruthSet) -> None:
    cfg = load_config(str(ROOT / "configs" / "DetNAS" / "demo" / "search.yaml"))
    space = get_space(cfg.MODEL.DETNAS.SPACE)
    truth.check_space(space)
    assert len(truth.ranged) >= 50 and len(truth.networks) - len(truth.ranged) >= 20
    assert len(truth.seeds) >= 3 and truth.metric == "bbox/AP"
    for network in truth.networks:
        assert len(network.scores) == len(truth.seeds)
        assert tuple(space.path(network.path)) == network.choices
        cost = build_cost_table(space).cost(network.choices)
        assert (cost.macs, cost.params) == (network.macs, network.params)
        assert cost.macs <= cfg.SEARCH.MAX_MACS
        assert not network.band or abs(cost.macs / truth.band_macs - 1) <= BAND


def test_its_certificate_is_the_one_that_is_told(truth: TruthSet) -> None:
    told = json.loads((RESULTS / "fidelity.json").read_text(encoding="utf-8"))
    found = record(certify(truth, best_of=1.0))
    assert found.keys() <= told.keys()
    for key, value in found.items():
        assert told[key] == (pytest.approx(value, abs=1e-3) if isinstance(value, float) else value)
