"""The benchmark of families: its rules against slow ones, its tables against single searches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from detnas_d2.config.tools import load_config
from detnas_d2.engine.proposals import Proposals
from detnas_d2.search import NSGA2Settings, Objectives
from detnas_d2.search.surrogate import costs, fit_surrogate
from detnas_d2.search.truth import read_truth
from detnas_d2.utils.errors import InputError
from tests.benchmarks.test_strategies import made_up

OBJECTIVES = Objectives(("macs",), (1e6,), (9e6,), (9e6,))


def drawn(seed: int, count: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Fitness and cost of candidates; few values, so that some are equal."""
    rng = np.random.default_rng(seed)
    return rng.integers(20, 40, count) / 2, rng.integers(10, 90, count) * 1e5


@pytest.mark.parametrize("seed", range(20))
def test_members_are_those_of_slow_rules(benchmark_module, seed):
    rules = benchmark_module("family_rules")
    fitness, cost = drawn(seed)
    least, ratio = cost.min(), cost.max() / cost.min()
    places = []
    for band in range(4):
        low, high = least * ratio ** (band / 4), least * ratio ** ((band + 1) / 4)
        inside = (low <= cost) & ((cost < high) if band < 3 else True)
        own = [i for i in range(30) if inside[i]]
        places += [max(own, key=lambda i: (fitness[i], -i))] if own else []
    assert rules.of_bands(OBJECTIVES, fitness, cost, 4) == places

    family = rules.cheapest_and_bands(OBJECTIVES, fitness, cost, 5)
    cheapest = int(np.argmin(cost))
    assert family == [cheapest] + [place for place in places if place != cheapest]
    assert cost[family].tolist() == sorted(cost[family])

    def dominated(one: int) -> bool:
        return any(
            fitness[i] >= fitness[one]
            and cost[i] <= cost[one]
            and (fitness[i] > fitness[one] or cost[i] < cost[one] or i < one)
            for i in range(30)
            if i != one
        )

    front = sorted((i for i in range(30) if not dominated(i)), key=lambda i: cost[i])
    assert rules.on_the_front(OBJECTIVES, fitness, cost, 30) == front
    if len(front) > 2:
        family = rules.on_the_front(OBJECTIVES, fitness, cost, 3)
        assert [family[0], family[2]] == [front[0], front[-1]]


@pytest.mark.parametrize("seed", range(10))
def test_survivors_are_those_of_slow_rules(benchmark_module, seed):
    rules = benchmark_module("family_rules")
    fitness, cost = drawn(seed)
    among = [(number,) for number in range(30)]
    settings = NSGA2Settings(10, 2, 4, 4, 2, 0.1, ("fitness", "macs"))

    def survivors(name: str) -> list[int]:
        search = rules.SEARCHES[name](
            (30,), settings, costs_of=lambda choices: (cost[choices[0]],), seed=0
        )
        search._results = dict(zip(among, fitness, strict=True))
        return [choices[0] for choices in search._selected(among)]

    bands = rules.bands_of(cost, 4)
    left, best = set(range(30)), []
    while left:  # a round takes the fittest of each band, the fittest of these first
        fittest = [
            max((i for i in left if bands[i] == band), key=lambda i: (fitness[i], -i))
            for band in {bands[i] for i in left}
        ]
        best += sorted(fittest, key=lambda i: (-fitness[i], i))
        left -= set(fittest)
    assert survivors("survivors of bands") == best[:10]

    def above(one: int) -> int:
        clearly = [fitness[i] - fitness[one] > fitness.std() for i in range(30)]
        return sum(clearly[i] and cost[i] <= cost[one] for i in range(30))

    ranked = sorted(range(30), key=lambda i: (above(i), -fitness[i], i))
    assert survivors("survivors not clearly dominated") == ranked[:10]


def test_the_tables_are_those_of_single_searches(benchmark_module, tmp_path, capsys):
    families, rules = benchmark_module("families"), benchmark_module("family_rules")
    file, config, proposals = made_up(tmp_path)
    output = tmp_path / "out.json"
    command = ["--truth", file, "--config-file", config, "--seeds", "3", "--processes", "1"]
    families.main([*command, "--json", str(output), "SEARCH.GENERATIONS", "3"])
    found, text = json.loads(output.read_text()), capsys.readouterr().out
    assert found["candidates"] == 30
    assert list(found["settings"])[:2] == ["tells nothing", "tells nothing, +0.1 a million unseen"]

    networks = json.loads(Path(file).read_text())["networks"]
    chosen = np.array([network["choices"] for network in networks])
    scores = [np.mean(network["scores"]) for network in networks]
    surrogate = fit_surrogate([tuple(row) for row in chosen], scores, proposals.costs.macs)
    setting = next(told for told in rules.SETTINGS if str(told) == "tau 0.8, +0.1 a million")
    own = rules.own_deviation(read_truth(file), surrogate)
    assert found["own"] == own
    known = chosen[:30]  # the last ten are of the band
    keys = ["SEARCH.OBJECTIVES", "['fitness', 'macs']", "SEARCH.POPULATION", "10"]
    searching = Proposals.from_config(load_config(config, [*keys, "SEARCH.GENERATIONS", "3"]))
    least, most = proposals.constraint.range_of("macs")
    best, areas = np.empty((3, 2)), np.empty((3, 2))
    for seed in range(3):
        world = rules.World.of(surrogate, setting, own, seed, known)
        paths = rules.searched(rules.SEARCHES["NSGA-II"], searching, world)
        assert len(paths) == 30
        cost = costs(proposals.costs.macs, paths)
        truth = world.truth(paths)
        fitness = world.fitness(paths)
        assert np.corrcoef(fitness, truth)[0, 1] > 0.7
        front = rules.on_the_front(OBJECTIVES, fitness, cost * 1.0, 4)
        bands = rules.of_bands(OBJECTIVES, fitness, cost * 1.0, 4)
        for place, family in enumerate((front, bands)):
            best[seed, place] = truth[family].max()
            budgets = np.linspace(least, most, 20001)
            within = np.where(cost[family] <= budgets[:, None], truth[family], 0.0)
            areas[seed, place] = within.max(axis=1).mean()
    told = found["settings"][str(setting)]["NSGA-II"]
    for measure, values in (("best member", best), ("hypervolume", areas)):
        mean = told["front"][measure]["mean"]
        assert mean == pytest.approx(values[:, 0].mean(), rel=1e-3)
        apart = values[:, 1] - values[:, 0]
        half = 4.302653 * apart.std(ddof=1) / np.sqrt(3)  # Student's t, two degrees of freedom
        expected = [apart.mean(), apart.mean() - half, apart.mean() + half]
        assert told["bands"][measure]["difference"] == pytest.approx(expected, abs=0.05)
    cell = "{:+.2f} ({:+.2f} to {:+.2f})".format(*told["bands"]["best member"]["difference"])
    assert cell in text

    # A fitness that tells nothing finds the same candidates whatever their scores are.
    nothing = [rules.World.of(surrogate, told, own, 0, known) for told in rules.SETTINGS[:2]]
    same = [rules.searched(rules.SEARCHES["NSGA-II"], searching, told) for told in nothing]
    assert np.array_equal(*same)


@pytest.mark.parametrize(("slope", "seen"), [(0.0, True), (0.5, True), (0.5, False)])
def test_the_fitness_of_a_world(benchmark_module, tmp_path, slope, seen):
    """The score with errors for the tau; what the fitness does not see is in the truth alone."""
    rules = benchmark_module("family_rules")
    file, _, proposals = made_up(tmp_path)
    truth = read_truth(file)
    chosen = np.array([network.choices for network in truth.networks])
    surrogate = fit_surrogate(list(map(tuple, chosen)), chosen[:, 0] * 2.0, proposals.costs.macs)
    setting = rules.Setting(0.5, slope, seen)
    worlds = [rules.World.of(surrogate, setting, 1.5, seed, chosen) for seed in range(200)]
    millions = costs(proposals.costs.macs, chosen) / 1e6
    own = [world.truth(chosen) - surrogate.scores(chosen) - slope * millions for world in worlds]
    assert np.std(own) == pytest.approx(1.5, rel=0.05)
    assert np.abs(np.mean(own, axis=0)).max() < 0.5
    hidden = 0.0 if seen else slope * millions
    taus = [
        stats.kendalltau(world.fitness(chosen), world.truth(chosen) - hidden).statistic
        for world in worlds
    ]
    assert np.mean(taus) == pytest.approx(0.5, abs=0.06)


def test_what_networks_have_of_their_own(benchmark_module, tmp_path):
    """What their scores differ by, less the noise of trainings and what the surrogate tells."""
    rules = benchmark_module("family_rules")
    truth = read_truth(made_up(tmp_path)[0])

    class Nothing:
        def scores(self, paths):
            return np.zeros(len(paths))

    scores = np.array([network.scores for network in truth.networks[:30]])
    between, within = scores.mean(axis=1).var(ddof=1), scores.var(axis=1, ddof=1).mean()
    assert rules.own_deviation(truth, Nothing()) == pytest.approx(np.sqrt(between - within / 3))


def test_what_is_wrong_is_named(benchmark_module, tmp_path):
    families = benchmark_module("families")
    file, config, _ = made_up(tmp_path)
    command = ["--truth", file, "--config-file", config]
    for options in (["--seeds", "1"], ["--family", "1"], ["SEARCH.MAX_MACS", "0"]):
        with pytest.raises(InputError, match="expected a limit, 2 or more"):
            families.main([*command, *options])
