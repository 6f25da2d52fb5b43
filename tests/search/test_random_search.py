"""Random search behind the searchers' interface."""

from __future__ import annotations

import pytest

from detnas_d2.search.random_search import RandomSearch


def test_batches_add_up_to_the_samples():
    searcher = RandomSearch((4,) * 20, samples=23, batch=10, seed=0)
    sizes, seen = [], set()
    while not searcher.done:
        sizes.append(len(searcher.population))
        for choices in searcher.ask():
            seen.add(choices)
            searcher.tell(choices, float(sum(choices)))
    assert sizes == [10, 10, 3]
    assert len(seen) == searcher.expected == 23
    assert searcher.best[1] == max(map(sum, seen))


def test_proposals_ignore_the_fitness():
    def proposals(fitness):
        searcher = RandomSearch((4,) * 20, samples=8, batch=4, seed=1)
        proposed = []
        while not searcher.done:
            proposed += searcher.ask()
            for choices in searcher.ask():
                searcher.tell(choices, fitness)
        return proposed

    assert proposals(1.0) == proposals(None)


def test_every_batch_has_a_generator_of_its_own():
    """The second batch does not continue the draws of the first, whatever was told of it."""
    whole = RandomSearch((4,) * 20, samples=20, batch=20, seed=1).ask()
    halves = RandomSearch((4,) * 20, samples=20, batch=10, seed=1)
    assert halves.ask() == whole[:10]
    for choices in halves.ask():
        halves.tell(choices, None)
    assert not set(halves.ask()) & set(whole)


def test_draws_are_uniform_over_the_feasible_paths():
    searcher = RandomSearch(
        (4,) * 20, samples=2000, batch=2000, seed=0, feasible=lambda c: c[0] != 2
    )
    counts = [sum(c[0] == op for c in searcher.ask()) for op in range(4)]
    assert counts[2] == 0
    assert all(abs(counts[op] - 2000 / 3) < 100 for op in (0, 1, 3))  # 4.7 standard deviations


def test_samples_and_batch_are_checked():
    with pytest.raises(ValueError, match="samples and batch must be at least 1, got 0 and 5"):
        RandomSearch((4,), samples=0, batch=5, seed=0)
