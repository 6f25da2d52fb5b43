"""The benchmark of strategies, on a small made-up truth set."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from detnas_d2.config.tools import load_config
from detnas_d2.engine.proposals import Proposals
from detnas_d2.search import RandomSearch
from detnas_d2.search.surrogate import costs, fit_surrogate
from detnas_d2.search.truth import TruthNetwork, TruthSet, space_digest, write_truth
from detnas_d2.search_space import get_space
from detnas_d2.utils.errors import InputError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SPACE = get_space("detnas_tiny")
EVERY = np.array(list(itertools.product(*map(range, SPACE.cardinalities))))


@pytest.fixture
def strategies(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("strategies")
    for name in ("strategies", "landscape"):
        del sys.modules[name]


@pytest.fixture
def landscape(strategies):
    return sys.modules["landscape"]


def made_up(folder: Path) -> tuple[str, str, Proposals]:
    """A truth set of 40 networks, a config with a limit that a third of the paths exceed."""
    config = folder / "search.yaml"
    config.write_text(
        "VERSION: 2\nMODEL:\n  DETNAS:\n    SPACE: detnas_tiny\nSEARCH:\n  MAX_MACS: 1\n"
    )
    table = Proposals.from_config(load_config(str(config))).costs
    limit = int(np.quantile(costs(table.macs, EVERY), 2 / 3))
    config.write_text(config.read_text().replace("MAX_MACS: 1", f"MAX_MACS: {limit}"))
    rng = np.random.default_rng(3)
    worth = [rng.normal(size=n) for n in SPACE.cardinalities]
    networks = []
    for number, index in enumerate(rng.choice(len(EVERY), 40, replace=False)):
        choices = tuple(map(int, EVERY[index]))
        score = 50 + sum(row[c] for row, c in zip(worth, choices, strict=True))
        scores = tuple(float(score + 0.3 * rng.normal()) for _ in range(3))
        networks.append(
            TruthNetwork(
                str(SPACE.path(choices)),
                choices,
                table.macs.total(choices),
                table.params.total(choices),
                scores,
                band=number >= 30,
                supernet=None if number == 0 else float(score - 10 + rng.normal()),
            )
        )
    truth = TruthSet(
        SPACE.name,
        space_digest(SPACE),
        "bbox/AP",
        "scenes",
        (0, 1, 2),
        "made up",
        {},
        tuple(networks),
    )
    write_truth(str(folder / "truth.json"), truth)
    return str(folder / "truth.json"), str(config), Proposals.from_config(load_config(str(config)))


def test_the_tables_are_those_of_brute_force(strategies, tmp_path, capsys):
    file, config, proposals = made_up(tmp_path)
    output = tmp_path / "out.json"
    command = ["--truth", file, "--config-file", config, "--json", str(output), "--seeds", "4"]
    sizes = ["SEARCH.POPULATION", "25", "SEARCH.GENERATIONS", "4"]
    strategies.main([*command, "--tau", "1", "--processes", "1", *sizes])
    found = json.loads(output.read_text())
    text = capsys.readouterr().out

    networks = json.loads(Path(file).read_text())["networks"]
    scores = [np.mean(network["scores"]) for network in networks]
    chosen = [tuple(network["choices"]) for network in networks]
    surrogate = fit_surrogate(chosen, scores, proposals.costs.macs)
    kept = EVERY[costs(proposals.costs.macs, EVERY) <= proposals.limits.max_macs]
    best = surrogate.scores(kept).max()
    assert found["best"] == pytest.approx(best, abs=1e-9)
    assert found["surrogate"]["r2"] == pytest.approx(surrogate.r2)
    assert surrogate.r2 > 0.9
    assert found["error"] == 0

    regret = np.empty((4, 2))
    for seed in range(4):
        drawn = RandomSearch(
            SPACE.cardinalities, samples=100, batch=25, seed=seed, feasible=proposals.constraint
        )
        values = []
        while not drawn.done:
            values += list(surrogate.scores(np.array(drawn.ask())))
            for path in drawn.ask():
                drawn.tell(path, None)
        regret[seed] = best - max(values[:50]), best - max(values)
    half = 3.182446 * regret.std(axis=0, ddof=1) / 2  # Student's t, three degrees of freedom
    for place, count in enumerate(("50", "100")):
        mean, low, high = found["strategies"]["random"]["regret"][count]
        assert mean == pytest.approx(regret[:, place].mean())
        assert [low, high] == pytest.approx([mean - half[place], mean + half[place]], abs=1e-6)
        row = "| random | {:.2f} [{:.2f}, {:.2f}]"
        assert place or row.format(mean, low, high) in text
    assert found["strategies"]["predictor"]["regret"]["100"][0] < regret[:, 1].mean()
    assert found["strategies"]["evolution (paper)"]["difference"]["100"] == [0, 0, 0]
    assert "scores are a surrogate's, not of trainings" in text

    # With errors, in two processes as in one.
    outputs = []
    for processes in ("1", "2"):
        strategies.main([*command, "--shared-error", "0.3", "--processes", processes, *sizes])
        outputs.append(output.read_text())
    assert outputs[0] == outputs[1]
    with_errors = json.loads(outputs[0])
    known = networks[1:30]  # the first has no fitness, the last are of the band
    tau = stats.kendalltau([n["supernet"] for n in known], [np.mean(n["scores"]) for n in known])
    assert with_errors["fitness_tau"] == pytest.approx(tau.statistic)
    assert with_errors["error"] > 0


def test_evaluations_needed(strategies):
    """Whole generations until the mean is that of the reference at its end."""
    reference = np.array([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    regret = {
        strategies.REFERENCE: reference,
        "twice as fast": reference[:, [1, 3, 3, 3]],
        "never": reference + 0.5,
        "by seed": np.array([[1.0, 1.0, 1.0, 1.0], [4.0, 1.0, 1.0, 1.0]]),
    }
    needed = strategies.evaluations_needed(regret, 50)
    assert needed[strategies.REFERENCE] == [200, 200, 200]
    assert needed["twice as fast"] == [100, 100, 100]
    assert needed["never"] == [math.inf] * 3
    assert needed["by seed"] == [100, 50, 100]  # a quarter of the resamples has the first seed only


@pytest.mark.parametrize("tau", [0.3, 0.6, 0.9])
def test_errors_give_the_tau(landscape, tau):
    """Against Kendall's tau of drawn errors, those of the fitness."""
    truth = np.random.default_rng(0).gamma(2.0, size=60)
    error = landscape.error_for(truth, tau)
    rng = np.random.default_rng(1)
    drawn = [
        stats.kendalltau(truth, truth + error * rng.normal(size=60)).statistic for _ in range(400)
    ]
    assert np.mean(drawn) == pytest.approx(tau, abs=4 * stats.sem(drawn))
    assert landscape.error_for(truth, 1.0) == 0


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_the_fitness_is_the_score_with_an_error(landscape, shared):
    class Scores:
        rows = tuple(np.zeros(n) for n in SPACE.cardinalities)

        def scores(self, paths):
            return paths.sum(axis=1).astype(float)

    land = landscape.Landscape(Scores(), 15.0, 2.0, shared)
    fitness = np.array([land.fitness(EVERY, seed) for seed in range(40)])
    errors = fitness - EVERY.sum(axis=1)
    assert errors.std() == pytest.approx(2.0, rel=0.03)
    # What a path gets does not depend on the others asked for with it.
    assert land.fitness(EVERY[[7, 3]], 5).tolist() == pytest.approx(fitness[5, [7, 3]].tolist())
    # What the errors of paths with one operation have in common: a fifth of the shared part.
    layer = [errors[:, EVERY[:, 0] == op].mean(axis=1) for op in range(4)]
    assert np.var(layer) == pytest.approx(4 * (shared / 5 + (1 - shared) / 256), rel=0.25)
    assert land.regret(EVERY[-1:]).tolist() == [0.0]


def test_what_is_wrong_is_named(strategies, tmp_path):
    file, config, _ = made_up(tmp_path)
    command = ["--truth", file, "--config-file", config]
    for options, message in (
        (["--tau", "0"], "tau 0: expected one above 0, at most 1"),
        (["--tau", "1.5"], "tau 1.5: expected one above 0"),
        (["--seeds", "1"], "--seeds 1 .*: expected 2 or more"),
        (["--shared-error", "2"], "--shared-error 2: expected"),
        (["SEARCH.MIN_MACS", "1"], "min_macs=1: expected SEARCH.MAX_MACS alone"),
        (["MODEL.DETNAS.SPACE", "detnas_small"], "truth set is of another space"),
    ):
        with pytest.raises(InputError, match=message):
            strategies.main([*command, *options])
    content = json.loads(Path(file).read_text())
    for network in content["networks"]:
        network["supernet"] = None
    Path(file).write_text(json.dumps(content))
    with pytest.raises(InputError, match="no fitness of a supernet: name a tau"):
        strategies.main(command)
