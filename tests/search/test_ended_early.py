"""A search that is ended after a generation, and goes on to fewer than it was begun with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from detnas_d2.evaluation.ranks import SingleProcess
from detnas_d2.search import FingerprintMismatch, History, Limits, ReplayError, open_history
from detnas_d2.search.build import search_fingerprint
from detnas_d2.search.history import change_generations
from tests.helpers import load_file

toy = load_file("toy_search", Path(__file__).with_name("toy_search.py"))


@pytest.mark.parametrize("done", [1, 3])
def test_a_search_that_is_ended_goes_on_to_fewer_generations(tmp_path, done):
    class Ended(BaseException):
        pass

    def end():
        if len(history) == 10 * done:
            raise Ended

    def fingerprint(generations):
        settings = dataclasses.replace(toy.SETTINGS, generations=generations)
        own = toy.searcher(settings=settings)
        found = search_fingerprint(
            space=settings, searcher=own, limits=Limits(), checkpoint_sha256=""
        )
        return own, {**found, "space": "toy"}

    own, planned = fingerprint(4)
    history = open_history(tmp_path, planned, resume=False, ranks=SingleProcess())
    with pytest.raises(Ended):
        toy.search(history, searcher=own, after_generation=end)
    own, shorter = fingerprint(3)
    with pytest.raises(FingerprintMismatch, match="searcher.settings.generations: 3"):
        open_history(tmp_path, shorter, resume=True, ranks=SingleProcess())
    for _ in range(2):  # the second time nothing changes
        change_generations(tmp_path, 3)
    history = open_history(tmp_path, shorter, resume=True, ranks=SingleProcess())
    toy.search(history, searcher=own)
    whole = History.in_memory()
    toy.search(whole)
    assert history.identity() == whole.identity()[:30]
    # Not to fewer than were evaluated.
    change_generations(tmp_path, 2)
    own, too_short = fingerprint(2)
    history = open_history(tmp_path, too_short, resume=True, ranks=SingleProcess())
    with pytest.raises(ReplayError):
        toy.search(history, searcher=own)


def test_the_last_generation_ends_a_search_by_itself():
    ends = []
    toy.search(History.in_memory(), after_generation=lambda: ends.append(1))
    assert len(ends) == 3
