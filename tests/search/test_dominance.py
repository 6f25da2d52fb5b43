"""Ranks, crowding distances and hypervolumes, against slow references and against Optuna's."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detnas_d2.search.dominance import crowding_distances, dominance_ranks, hypervolume

# Few values: ties and equal points are frequent.
POINTS = st.integers(1, 4).flatmap(
    lambda objectives: st.lists(
        st.tuples(*[st.sampled_from([-2.5, -1.0, -0.0, 0.0, 1.0, 7.25])] * objectives),
        min_size=1,
        max_size=14,
    )
)
SIZES = [(1, 2), (2, 2), (3, 3), (40, 2), (40, 3), (200, 3)]


def dominates(one, other):
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def peeled(points):
    """Ranks by definition: front after front is taken away."""
    ranks, left, rank = {}, set(range(len(points))), 0
    while left:
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        ranks |= dict.fromkeys(front, rank)
        left, rank = left - front, rank + 1
    return [ranks[i] for i in range(len(points))]


@given(points=POINTS)
@settings(max_examples=100, deadline=None)
def test_ranks_are_those_of_peeling_off_fronts(points):
    assert dominance_ranks(np.array(points)).tolist() == peeled(points)


def test_no_point_has_no_rank():
    assert dominance_ranks(np.empty((0, 3))).shape == (0,)
    assert crowding_distances(np.empty((0, 3))).shape == (0,)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("values", [3, 10**6])
def test_ranks_are_optunas(size, values):
    optuna = pytest.importorskip("optuna.study._multi_objective")
    points = np.random.default_rng(len(SIZES) * size[0] + values).integers(-values, values, size)
    expected = optuna._fast_non_domination_rank(points.astype(float))
    assert dominance_ranks(points).tolist() == expected.tolist()
    turned = np.asfortranarray(points[::-1].astype(np.float32))  # other layout, other type
    assert dominance_ranks(turned).tolist() == expected.tolist()[::-1]


def by_definition(points):
    """Crowding distances, a point and an objective at a time."""
    distances = [0.0] * len(points)
    for values in zip(*points, strict=True):
        order = sorted(range(len(points)), key=lambda i: values[i])
        low, high = values[order[0]], values[order[-1]]
        if low == high:
            continue
        for place, i in enumerate(order):
            if place in (0, len(points) - 1):
                distances[i] = math.inf
            else:
                gap = values[order[place + 1]] - values[order[place - 1]]
                distances[i] += gap / (high - low)
    return distances


@given(points=POINTS)
@settings(max_examples=200, deadline=None)
def test_crowding_distances_are_those_of_the_definition(points):
    assert crowding_distances(np.array(points)).tolist() == by_definition(points)


@pytest.mark.parametrize("objectives", [2, 3])
def test_ten_thousand_points_take_less_than_a_second(objectives):
    points = np.random.default_rng(objectives).random((10_000, objectives))
    start = time.process_time()
    ranks = dominance_ranks(points)
    for rank in range(ranks.max() + 1):
        crowding_distances(points[ranks == rank])
    assert time.process_time() - start < 1


def test_crowding_distances_by_hand():
    """A front of five: shares of a range of 10 and of one of 4."""
    points = [(0, 4), (1, 3), (4, 2), (9, 1), (10, 0)]
    middle = [4 / 10 + 2 / 4, 8 / 10 + 2 / 4, 6 / 10 + 2 / 4]
    assert crowding_distances(np.array(points)).tolist() == [math.inf, *middle, math.inf]
    assert crowding_distances(np.array([(3.0, 3.0), (3.0, 3.0)])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("size", SIZES)
def test_crowding_distances_are_optunas(size):
    """Of distinct values: those of equal ones depend on their order, which Optuna changes."""
    nsga2 = pytest.importorskip("optuna.samplers.nsgaii._elite_population_selection_strategy")
    from optuna.trial import create_trial

    points = np.random.default_rng(size[0]).permuted(
        np.arange(size[0] * size[1], dtype=float).reshape(size), axis=0
    )
    trials = [create_trial(values=list(point)) for point in points]
    for number, trial in enumerate(trials):
        trial.number = number
    expected = nsga2._calc_crowding_distance(list(trials))
    found = crowding_distances(points)
    assert found == pytest.approx([expected[i] for i in range(len(points))], rel=1e-12)


@given(
    points=st.integers(2, 3).flatmap(
        lambda objectives: st.lists(
            st.tuples(*[st.integers(0, 6)] * objectives), min_size=1, max_size=10
        )
    )
)
@settings(max_examples=200, deadline=None)
def test_hypervolume_counts_the_cells_that_are_dominated(points):
    objectives = len(points[0])
    cells = itertools.product(range(5), repeat=objectives)
    covered = sum(
        any(all(p <= c for p, c in zip(point, cell, strict=True)) for point in points)
        for cell in cells
    )
    assert hypervolume(points, (5,) * objectives) == covered
    assert hypervolume(reversed(points), (5,) * objectives) == covered
    moved = [tuple(value - 100 for value in point) for point in points]
    assert hypervolume(moved, (-95,) * objectives) == covered


@pytest.mark.parametrize("size", SIZES)
def test_hypervolume_is_optunas(size):
    optuna = pytest.importorskip("optuna._hypervolume")
    points = np.random.default_rng(size[0]).normal(size=size)
    reference = np.full(size[1], 0.75)
    inside = points[(points < reference).all(axis=1)]
    expected = optuna.compute_hypervolume(inside, reference)
    assert hypervolume(points.tolist(), reference.tolist()) == pytest.approx(expected, rel=1e-9)


def test_what_is_no_set_of_points_is_refused():
    for points in ([1.0, 2.0], [[math.nan, 1.0]], [[math.inf, 1.0]]):
        with pytest.raises(ValueError, match="expected finite points"):
            dominance_ranks(np.array(points))
        with pytest.raises(ValueError, match="expected finite points"):
            crowding_distances(np.array(points))
    for objectives in (1, 4):
        with pytest.raises(ValueError, match=f"hypervolume of {objectives} objectives"):
            hypervolume([(0,) * objectives], (1,) * objectives)
