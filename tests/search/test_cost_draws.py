"""Random paths of a wanted cost."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from detnas_d2.search.cost_draws import BINS, CostSampler, cost_sampler, in_band, over_costs
from detnas_d2.search_space import AdditiveTable, build_cost_table, get_space
from detnas_d2.search_space.candidates import ConditionalTable
from detnas_d2.utils.errors import InputError

TABLE = AdditiveTable(100, ((0, 7, 30), (5, 1, 90), (2, 2, 40), (11, 60, 3)))
PATHS = list(itertools.product(range(3), repeat=4))
CONDITIONAL = ConditionalTable(
    (AdditiveTable(90, TABLE.entries[:3]), AdditiveTable(120, TABLE.entries[1:])), gene=1
)
WITH_GENE = list(itertools.product(range(3), range(2), range(3), range(3)))


def anything(_: object) -> bool:
    return True


@pytest.mark.parametrize(
    ("table", "paths", "count"),
    [(TABLE, PATHS, 41), (CONDITIONAL, WITH_GENE, 15)],
    ids=["additive", "conditional"],
)
def test_draws_are_uniform_among_the_paths_of_the_interval(
    table: AdditiveTable[int] | ConditionalTable[int], paths: list[tuple[int, ...]], count: int
) -> None:
    wanted = [path for path in paths if 140 <= table.total(path) <= 210]
    assert len(wanted) == count
    sampler, rng = cost_sampler(table), random.Random(0)
    drawn = Counter(sampler.draw(140, 210, rng) for _ in range(200 * len(wanted)))
    assert drawn.keys() == set(wanted)
    # Chi-squared: its mean is the number of degrees of freedom, its deviation sqrt(2 of them).
    chi = sum((count - 200) ** 2 / 200 for count in drawn.values())
    freedom = len(wanted) - 1
    assert abs(chi - freedom) < 4 * (2 * freedom) ** 0.5


def test_ends_of_the_range_are_reached_and_what_is_outside_is_not() -> None:
    sampler, rng = CostSampler(TABLE), random.Random(0)
    for end in (TABLE.cheapest(), TABLE.most_expensive()):
        assert TABLE.total(sampler.draw(end, end, rng)) == end
    assert sampler.draw(0, TABLE.cheapest() - 1, rng) is None
    assert sampler.draw(TABLE.most_expensive() + 1, 10**6, rng) is None


def test_range_of_a_large_space_is_covered() -> None:
    table = build_cost_table(get_space("detnas_small")).macs
    low, high = table.cheapest(), table.most_expensive()
    sampler = CostSampler(table)
    found = over_costs(sampler, anything, count=40, low=low, high=high, seed=3)
    assert len(set(found)) == 40
    bins = Counter(int(BINS * (table.total(path) - low) / (high - low + 1)) for path in found)
    assert bins == dict.fromkeys(range(BINS), 4)
    longer = over_costs(sampler, anything, count=53, low=low, high=high, seed=3)
    assert longer[:40] == found
    assert over_costs(sampler, anything, count=40, low=low, high=high, seed=4) != found


def test_every_path_of_a_small_space_is_found_once() -> None:
    low, high = TABLE.cheapest(), TABLE.most_expensive()
    sampler = CostSampler(TABLE)
    found = over_costs(sampler, anything, count=81, low=low, high=high, seed=0)
    assert sorted(found) == PATHS
    with pytest.raises(
        InputError, match="^3 networks with a cost of 106 to 106: only 2 were found"
    ):
        over_costs(sampler, anything, count=3, low=low, high=low, seed=0)


def test_limits_and_band_are_kept() -> None:
    sampler = CostSampler(TABLE)
    found = in_band(sampler, lambda path: path[0] != 2, count=5, middle=200, seed=0)
    assert len(set(found)) == 5 and all(path[0] != 2 for path in found)
    assert all(190 <= TABLE.total(path) <= 210 for path in found)
    assert in_band(sampler, lambda path: path[0] != 2, count=3, middle=200, seed=0) == found[:3]
    with pytest.raises(InputError, match="within 5% of a cost of 200: only"):
        in_band(sampler, anything, count=60, middle=200, seed=0)
