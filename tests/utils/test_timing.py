"""Alternatives are timed in turns."""

from __future__ import annotations

import time

from detnas_d2.utils.timing import in_turns, milliseconds


def test_every_round_runs_every_alternative_once() -> None:
    order: list[str] = []
    found = in_turns(lambda name: order.append(name) or len(order), ["a", "b"], 3)
    assert order == ["a", "b"] * 3
    assert found == [[1, 3, 5], [2, 4, 6]]


def test_milliseconds_of_one_call() -> None:
    assert 20 <= milliseconds(lambda: time.sleep(0.02)) < 2000
