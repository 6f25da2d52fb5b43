"""Alternatives are timed in turns."""

from __future__ import annotations

import time

import pytest
import torch

from detnas_d2.utils.timing import in_turns, milliseconds, wait_for


def test_every_round_runs_every_alternative_once() -> None:
    order: list[str] = []
    found = in_turns(lambda name: order.append(name) or len(order), ["a", "b"], 3)
    assert order == ["a", "b"] * 3
    assert found == [[1, 3, 5], [2, 4, 6]]


def test_milliseconds_of_one_call() -> None:
    assert 20 <= milliseconds(lambda: time.sleep(0.02)) < 2000


def test_the_gpu_that_works_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(device))
    milliseconds(lambda: None, "cuda:1")
    assert waited == ["cuda:1", "cuda:1"]
    wait_for("cpu")
    wait_for(torch.device("cuda", 2))
    assert waited[2:] == [torch.device("cuda", 2)]
