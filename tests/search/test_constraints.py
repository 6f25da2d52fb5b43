"""Limits checked from additive tables."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detnas_d2.search.constraints import Constraint, Limits, UnsatisfiableLimit
from detnas_d2.search_space import SPACES, Cost, CostTable, LatencyTable, build_cost_table


def cost(macs, params=0):
    return Cost(params, macs)


def table_of(base, *entries):
    return CostTable(base, tuple(map(tuple, entries)), (8, 8))


# Two layers of two ops: macs 10 + {1, 5} + {2, 3} = 13, 14, 17, 18.
COSTS = table_of(cost(10, 1), [cost(1, 7), cost(5, 2)], [cost(2, 4), cost(3, 4)])
LATENCY = LatencyTable(0.5, ((0.25, 1.0), (2.0, 1.5)), "toy", (8, 8), 1, "none")


def test_bounds_are_inclusive():
    assert [Constraint(Limits(max_macs=14), COSTS)(c) for c in ((0, 0), (0, 1), (1, 0))] == [
        True,
        True,
        False,
    ]
    assert [Constraint(Limits(min_macs=17), COSTS)(c) for c in ((0, 1), (1, 0))] == [False, True]


def test_every_limit_counts():
    paths = list(itertools.product((0, 1), (0, 1)))  # params 12, 12, 7, 7; ms 2.75, 2.25, 3.5, 3
    for limits, kept in (
        (Limits(), paths),
        (Limits(max_params=8), [(1, 0), (1, 1)]),
        (Limits(max_latency_ms=3.0), [(0, 0), (0, 1), (1, 1)]),
        (Limits(max_params=8, max_latency_ms=3.0, min_macs=14), [(1, 1)]),
    ):
        assert [p for p in paths if Constraint(limits, COSTS, LATENCY)(p)] == kept


def test_costs_of():
    costs = Constraint(Limits(), COSTS, LATENCY).costs_of((1, 0))
    assert costs == {"macs": 17, "params": 7, "latency_ms": 3.5}
    assert Constraint(Limits()).costs_of((1, 0)) == dict.fromkeys(("macs", "params", "latency_ms"))


@given(
    entries=st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=3), min_size=1, max_size=4),
    base=st.integers(0, 20),
    bound=st.integers(1, 150),
    field=st.sampled_from(["max_macs", "min_macs"]),
)
@settings(max_examples=100, deadline=None)
def test_satisfiable_exactly_when_some_path_is_feasible(entries, base, bound, field):
    table = table_of(cost(base), *([cost(m) for m in row] for row in entries))
    constraint = Constraint(Limits(**{field: bound}), table)
    paths = list(itertools.product(*(range(len(row)) for row in entries)))
    if any(map(constraint, paths)):
        constraint.check_satisfiable()
    else:
        with pytest.raises(UnsatisfiableLimit, match=f"{field} is {bound}, but"):
            constraint.check_satisfiable()


def test_unsatisfiable_limits_name_both_numbers():
    cases = {
        "max_macs is 12, but the cheapest path of the space has 13 macs": {"max_macs": 12},
        "max_params is 6, but the cheapest .* has 7 params": {"max_params": 6},
        "max_latency_ms is 2.0, but the cheapest .* has 2.25 latency_ms": {"max_latency_ms": 2.0},
        "min_macs is 19, but the most expensive .* has 18 macs": {"min_macs": 19},
    }
    for message, limits in cases.items():
        with pytest.raises(UnsatisfiableLimit, match=message):
            Constraint(Limits(**limits), COSTS, LATENCY).check_satisfiable()


def test_small_space_extremes():
    """The exact range of the small space by the released counter: 237.22M to 365.47M."""
    table = Constraint(Limits(), build_cost_table(SPACES["detnas_small"])).tables["macs"]
    assert round(table.cheapest() / 1e6, 2) == 237.22
    assert round(table.most_expensive() / 1e6, 2) == 365.47


def test_agrees_with_the_cost_table():
    space = SPACES["detnas_small"]
    table = build_cost_table(space)
    constraint = Constraint(Limits(), table)
    for op in range(4):
        choices = (op,) * space.num_layers
        costs = constraint.costs_of(choices)
        assert (costs["macs"], costs["params"]) == (
            table.cost(choices).macs,
            table.cost(choices).params,
        )


def test_limits_are_checked():
    with pytest.raises(ValueError, match="max_macs must be positive or None .*, got 0"):
        Limits(max_macs=0)
    with pytest.raises(ValueError, match="min_macs 5 exceeds max_macs 4"):
        Limits(max_macs=4, min_macs=5)
    with pytest.raises(ValueError, match="max_latency_ms is set, but there is no table"):
        Constraint(Limits(max_latency_ms=1.0), COSTS)
    with pytest.raises(ValueError, match="shorter|longer"):
        Constraint(Limits(max_macs=99), COSTS)((0,))


def test_text():
    assert str(Limits(max_macs=300, min_macs=10)) == "max_macs=300, min_macs=10"
    assert str(Constraint(Limits())) == "no limit"
