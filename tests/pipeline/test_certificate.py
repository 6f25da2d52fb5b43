"""What a truth set says about the scores of its networks."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from detnas_d2.analysis.rank_statistics import Interval
from detnas_d2.pipeline.certificate import (
    MACS,
    MEAN_RANKS,
    PARAMS,
    SUPERNET,
    UNTRAINED,
    Certificate,
    certify,
)
from detnas_d2.programs.fidelity_report import draw, markdown, numbers, record, verdict
from detnas_d2.programs.numbers import write_numbers
from detnas_d2.search.truth import TruthNetwork, TruthSet
from detnas_d2.utils.errors import InputError


def simulated(
    noise: float = 0.5, *, networks: int = 60, band: int = 20, spread: float = 2.0, seed: int = 0
) -> TruthSet:
    """Truth with noise 1 of a training; ``noise`` is the supernet's. Costs tell nothing."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(networks + band):
        true = rng.normal(50, spread)
        macs = int(rng.integers(100, 300)) if number < networks else int(rng.integers(190, 210))
        found.append(
            TruthNetwork(
                f"op{number}",
                (number,),
                macs,
                int(rng.integers(10, 30)),
                tuple(true + rng.normal(0, 1, 3)),
                number >= networks,
                true / 2 + rng.normal(0, noise / 2),
                {UNTRAINED: rng.normal()},
            )
        )
    versions = {"torch": "2"}
    seeds = 0, 1, 2
    return TruthSet("tiny", "0", "bbox/AP", "val", seeds, "x.py", versions, tuple(found), 200)


def test_figures_are_those_of_the_networks_over_the_range() -> None:
    truth = simulated(2.0)
    found = certify(truth, best_of=4.4, resamples=200)
    ranged = truth.networks[:60]
    means = [np.mean(network.scores) for network in ranged]
    fitness = [network.supernet for network in ranged]
    own, macs = found.ranker(SUPERNET), found.ranker(MACS)
    assert own.tau.value == pytest.approx(stats.kendalltau(means, fitness).statistic)
    assert own.spearman == pytest.approx(stats.spearmanr(means, fitness).statistic)
    assert macs.tau.value < 0
    assert own.above_macs.value == pytest.approx(own.tau.value + macs.tau.value)
    assert own.tau.low < own.tau.value < own.tau.high
    chosen = np.argsort(fitness)[::-1]
    assert own.regrets[3] == pytest.approx(max(means) - max(means[i] for i in chosen[:3]))
    assert found.chosen_truth == pytest.approx(means[chosen[0]])
    whole = np.round(np.array(means) / found.spread.within)
    assert own.sparse_tau == pytest.approx(stats.kendalltau(whole, fitness).statistic)
    assert (found.networks, found.seeds, found.left_out, found.best_of) == (60, 3, 0, 4)
    assert found.spread.between == pytest.approx(2, abs=0.4)
    assert found.ceiling == pytest.approx(0.82, abs=0.04)
    assert found.split_ceiling == pytest.approx(found.ceiling, abs=0.06)
    assert [r.name for r in found.rankers] == [SUPERNET, UNTRAINED, MACS, PARAMS]


def test_band_holds_all_networks_of_its_cost() -> None:
    truth = simulated(2.0)
    inside = [n for n in truth.networks if 190 <= n.macs <= 210]
    found = certify(truth, best_of=1, resamples=100)
    assert found.band == len(inside) > 20
    tau = stats.kendalltau([np.mean(n.scores) for n in inside], [n.supernet for n in inside])
    assert found.ranker(SUPERNET).band_tau.value == pytest.approx(tau.statistic)
    few = dataclasses.replace(truth, band_macs=10**6)
    assert certify(few, best_of=1, resamples=20).ranker(SUPERNET).band_tau is None


@pytest.mark.parametrize(
    ("noise", "changes", "level"),
    [
        (0.2, {"spread": 4.0}, "goal"),
        (0.2, {"spread": 4.0, "networks": 40}, "floor"),
        (1.2, {}, "credible"),
        (0.8, {"spread": 2.5}, "strong"),
        (2.5, {}, "floor"),
        (50.0, {}, "below the floor"),
    ],
)
def test_levels(noise: float, changes: dict, level: str) -> None:
    found = certify(simulated(noise, **changes), best_of=1, resamples=200)
    assert (found.level, verdict(found).endswith(f"({level}).")) == (level, True)


@pytest.mark.parametrize("sign", [1, -1])
def test_supernet_that_counts_multiply_adds_is_below_the_floor(sign: int) -> None:
    rng, networks = np.random.default_rng(0), []
    for network in simulated(spread=0.0, band=0).networks:
        scores = tuple(sign * network.macs / 20 + rng.normal(0, 1, 3))
        networks.append(
            dataclasses.replace(network, scores=scores, supernet=sign * network.macs / 1.0)
        )
    truth = dataclasses.replace(simulated(), networks=tuple(networks))
    found = certify(truth, best_of=1, resamples=200)
    assert found.ranker(SUPERNET).tau.low > 0.6 and found.level == "below the floor"


def test_levels_build_on_each_other() -> None:
    found = certify(simulated(0.2, spread=4.0), best_of=1, resamples=100)
    own = dataclasses.replace(found.ranker(SUPERNET), above_macs=Interval(0.1, -0.1, 0.3))
    low = dataclasses.replace(found, rankers=(own,))
    assert all(low.conditions()["goal"].values()) and low.level == "below the floor"


def test_several_supernets_have_a_mean_rank() -> None:
    truth = simulated(3.0)
    rng = np.random.default_rng(1)
    second = {f"{SUPERNET} b.pth": 0.0}
    networks = tuple(
        dataclasses.replace(
            network,
            others={key: float(np.mean(network.scores) / 2 + rng.normal(0, 1.5)) for key in second},
        )
        for network in truth.networks
    )
    found = certify(dataclasses.replace(truth, networks=networks), best_of=1, resamples=20)
    taus = {ranker.name: ranker.tau.value for ranker in found.rankers}
    assert list(taus) == [SUPERNET, f"{SUPERNET} b.pth", MEAN_RANKS, MACS, PARAMS]
    assert taus[MEAN_RANKS] > max(taus[SUPERNET], taus[f"{SUPERNET} b.pth"])


def test_networks_that_lack_something_are_left_out() -> None:
    truth = simulated()
    first, second, *others = truth.networks
    lacking = dataclasses.replace(first, scores=first.scores[:1])
    unscored = dataclasses.replace(second, supernet=None)
    part = dataclasses.replace(truth, networks=(lacking, unscored, *others))
    found = certify(part, best_of=1, resamples=20)
    assert (found.networks, found.left_out, found.seeds) == (58, 2, 3)
    with pytest.raises(InputError, match="2 networks with all scores: expected 3"):
        certify(dataclasses.replace(truth, networks=truth.networks[:2]), best_of=1)


def without_supernet(truth: TruthSet) -> TruthSet:
    networks = (dataclasses.replace(n, supernet=None) for n in truth.networks)
    return dataclasses.replace(truth, networks=tuple(networks))


@pytest.mark.parametrize("supernet", [True, False])
def test_report(tmp_path: Path, supernet: bool) -> None:
    truth = simulated(1.0) if supernet else without_supernet(simulated(1.0))
    found = certify(truth, best_of=7, resamples=100)
    text = markdown(found, truth)
    assert text.splitlines()[0] == verdict(found)
    assert ("| goal | lower bound of 0.65 or more | " in text) == supernet
    assert ("The best of 7 random networks" in text) == supernet
    many = markdown(dataclasses.replace(found, best_of=99), truth)
    assert ("cost what 99 trainings cost. The best of 60 random" in many) == supernet
    for ranker in found.rankers:
        assert f"| {ranker.name} | {ranker.tau} |" in text
    write_numbers(str(tmp_path / "report.json"), numbers(found, truth))
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["rankers"][MACS]["tau"][0] == pytest.approx(found.ranker(MACS).tau.value)
    kept = record(found)
    wanted = {"tau", "tau_low", "tau_high", "ceiling", "band_tau", "macs_tau", "networks", "seeds"}
    assert wanted <= kept.keys() and (kept["tau"] is None) == (not supernet)
    draw(found, truth, str(tmp_path / "report.svg"))
    assert "<svg" in (tmp_path / "report.svg").read_text()


def test_one_seed_has_no_ceiling() -> None:
    truth = simulated()
    one = (dataclasses.replace(network, scores=network.scores[:1]) for network in truth.networks)
    found: Certificate = certify(
        dataclasses.replace(truth, networks=tuple(one)), best_of=1, resamples=50
    )
    assert math.isnan(found.ceiling) and math.isnan(found.split_ceiling)
    assert "a perfect ranking would reach unknown" in markdown(found, truth)
    assert not found.conditions()["goal"]["90 % of the ceiling or more"]
