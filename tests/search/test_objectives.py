"""Objectives of a search: the front, its hypervolume, what is recommended; ``front.yaml``."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
import yaml

from detnas_d2.search.constraints import Constraint, Limits
from detnas_d2.search.front_file import FRONT_FILE, Front, best_of, front_text, read_front
from detnas_d2.search.objectives import FrontSoFar, Objectives
from detnas_d2.search_space import Cost, CostTable, LatencyTable
from detnas_d2.utils.errors import InputError
from tests.helpers import candidate_record

# Two layers of two ops: macs 10 + {1, 5} + {2, 3}, params 1 + {7, 2} + {4, 4}.
COSTS = CostTable(Cost(1, 10), ((Cost(7, 1), Cost(2, 5)), (Cost(4, 2), Cost(4, 3))), (8, 8))
LATENCY = LatencyTable(0.5, ((0.25, 1.0), (2.0, 1.5)), "toy", (8, 8), 1, "none")
MACS = Objectives(("macs",), (0,), (100,))
BOTH = Objectives(("macs", "params"), (0, 0), (100, 10))


def record(index, fitness, macs, params=5):
    return dataclasses.replace(
        candidate_record(index), fitness=fitness, macs=macs, params=params, path=f"path {index}"
    )


def records(*points):
    return [record(index, *point) for index, point in enumerate(points)]


def indices(found):
    return [r.index for r in found]


class TestWithin:
    def test_ranges_are_those_within_the_limits(self):
        free = Constraint(Limits(), COSTS, LATENCY)
        assert Objectives.within(["macs"], free, [20]) == Objectives(("macs",), (13,), (18,), (20,))
        found = Objectives.within(["latency_ms", "params"], free)
        assert found == Objectives(("latency_ms", "params"), (2.25, 7), (3.5, 12))
        limits = Limits(max_macs=17, min_macs=14, max_params=90, max_latency_ms=3.0)
        found = Objectives.within(["macs", "params"], Constraint(limits, COSTS, LATENCY))
        assert (found.least, found.most) == ((14, 7), (17, 12))

    def test_nothing_to_trade(self):
        constraint = Constraint(Limits(max_macs=13), COSTS)
        with pytest.raises(InputError, match="'macs', but all paths within max_macs=13 have 13"):
            Objectives.within(["macs"], constraint)

    def test_budgets_below_every_path(self):
        with pytest.raises(InputError, match="BUDGETS has 12, but the cheapest path .* has 13"):
            Objectives.within(["macs"], Constraint(Limits(), COSTS), [14, 12])


def test_front_of_two_costs():
    """1 is dominated by 0; 2 costs more macs and fewer parameters; 3 equals 0, and is later."""
    found = records((5, 10, 5), (4, 10, 5), (5, 20, 4), (5, 10, 5), (6, 30, 5))
    failed = dataclasses.replace(record(5, None, 1), error="reason")
    assert indices(BOTH.front([*reversed(found), failed])) == [0, 2, 4]
    assert indices(MACS.front(found)) == [0, 4]


def test_hypervolume_is_the_mean_of_the_best_fitness_within_budgets():
    # Nothing to 20, fitness 3 to 50, then 5.
    found = records((3, 20), (5, 50), (4, 60), (-1, 0), (7, 100))
    assert MACS.hypervolume(found) == pytest.approx((30 * 3 + 50 * 5) / 100)
    assert MACS.hypervolume([]) == 0
    rng = random.Random(0)
    found = records(*((rng.random(), rng.randrange(101), rng.randrange(11)) for _ in range(12)))
    budgets = np.random.default_rng(0).uniform(0, (100, 10), (4000, 2))
    best = [
        max((r.fitness for r in found if r.macs <= macs and r.params <= params), default=0)
        for macs, params in budgets
    ]
    error = np.std(best) / math.sqrt(len(best))
    assert BOTH.hypervolume(found) == pytest.approx(np.mean(best), abs=5 * error)


def test_front_so_far_is_the_front_of_all():
    rng = random.Random(1)
    found = records(*((rng.randrange(9), rng.randrange(9), rng.randrange(9)) for _ in range(60)))
    front = FrontSoFar(BOTH)
    for start in range(0, 60, 12):
        front.add(found[start : start + 12])
        assert front.members == BOTH.front(found[: start + 12])
        assert front.hypervolume == pytest.approx(BOTH.hypervolume(found[: start + 12]))


def test_the_fittest_within_each_budget_is_recommended():
    front = MACS.front(records((1, 10), (2, 20), (4, 30)))
    named = dataclasses.replace(MACS, budgets=(5, 25, 20, 99))
    found = named.recommended(front)
    assert [budget for budget, _ in found] == [5, 25, 20, 99]
    assert [r and r.index for _, r in found] == [None, 1, 1, 2]
    assert named.best(front).index == 1  # of the first budget that has one
    assert dataclasses.replace(MACS, budgets=(5,)).best(front).index == 0  # the cheapest
    front = BOTH.front(records((1, 10, 9), (1, 20, 8)))
    assert dataclasses.replace(BOTH, budgets=(30,)).best(front).index == 0  # of equal fitness


def test_without_budgets_it_is_the_farthest_above_the_line_between_the_ends():
    rng = random.Random(2)
    for _ in range(20):
        front = MACS.front(records(*((30 + rng.random(), rng.randrange(100)) for _ in range(30))))
        points = np.array([(r.macs, r.fitness) for r in front], float)
        points = (points - points.min(axis=0)) / np.ptp(points, axis=0)
        direction = (points[-1] - points[0]) / np.linalg.norm(points[-1] - points[0])
        heights = points[:, 1] * direction[0] - points[:, 0] * direction[1]
        [(budget, knee)] = MACS.recommended(front)
        assert budget is None and knee == MACS.best(front)
        assert heights[front.index(knee)] == pytest.approx(heights.max(), abs=1e-12)
    alone = records((1, 10))
    assert MACS.best(alone) == alone[0]
    # Scaled: fitness 0, 1/2, 1; mean costs 1/2, 1/4, 1.
    front = BOTH.front(records((1, 10, 9), (2, 20, 1), (3, 30, 9)))
    assert indices(front) == [0, 1, 2] and BOTH.best(front).index == 1


class TestFrontFile:
    def written(self, folder, objectives=MACS):
        found = records((1, 10), (2, 20), (0, 30), (4, 40))
        (folder / FRONT_FILE).write_text(front_text(objectives, objectives.front(found), "a/b"))
        return found

    def test_content(self, tmp_path):
        found = self.written(tmp_path, dataclasses.replace(MACS, budgets=(5, 30)))
        value = yaml.safe_load((tmp_path / FRONT_FILE).read_text())
        members = [
            {"number": n, "fitness": r.fitness, "macs": r.macs, "params": 5, "path": r.path}
            for n, r in enumerate((found[0], found[1], found[3]), start=1)
        ]
        assert value == {
            "metric": "a/b",
            "objectives": ["fitness", "macs"],
            "hypervolume": pytest.approx((10 * 1 + 20 * 2 + 60 * 4) / 100),
            "reference": {"fitness": 0, "macs": 100},
            "least": {"macs": 0},
            "best": "path 1",
            "recommended": [{"budget": 5}, {"budget": 30, **members[1]}],
            "members": members,
        }

    def test_best_is_what_the_file_says(self, tmp_path):
        assert best_of(str(tmp_path), []) is None
        found = self.written(tmp_path, dataclasses.replace(MACS, budgets=(10,)))
        assert best_of(str(tmp_path), found) == found[0]
        (tmp_path / FRONT_FILE).unlink()
        assert best_of(str(tmp_path), reversed(found)) == found[3]

    @pytest.mark.parametrize(
        "text",
        [
            *("best: path 9", "best: [", "- 1", "", "best: null", "{best: path 1, members: [1]}"),
            *("{best: path 1, members: []}", "{best: path 1, members: [{path: path 7}]}"),
        ],
    )
    def test_damage_is_named(self, text, tmp_path):
        found = self.written(tmp_path)
        (tmp_path / FRONT_FILE).write_text(text)
        with pytest.raises(
            InputError, match=r"front\.yaml: best or a member is .* resume the search"
        ):
            best_of(str(tmp_path), found)

    def test_members(self, tmp_path):
        found = self.written(tmp_path, dataclasses.replace(MACS, budgets=(20,)))
        front = read_front(str(tmp_path), found)
        assert (indices(front.members), front.best) == ([0, 1, 3], found[1])


def test_members_in_even_steps_with_the_recommended_one_among_them():
    members = tuple(records(*((number, number) for number in range(9))))

    def spread(best, count):
        return Front(members[best - 1], members).spread(count)

    assert spread(5, 3) == [1, 5, 9] and spread(3, 3) == [1, 3, 9]
    assert spread(4, 4) == [1, 4, 6, 9] and spread(8, 4) == [1, 4, 8, 9]
    assert spread(4, 1) == [4] and spread(4, 2) == [1, 9]
    for best in range(1, 10):
        for count in range(1, 10):
            found = spread(best, count)
            assert len(found) == count and found == sorted(set(found))
            assert best in found or count == 2
    for count in (0, 10):
        with pytest.raises(ValueError, match=f"{count} of 9"):
            spread(1, count)
