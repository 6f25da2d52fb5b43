"""Timing of alternatives in turns.

Every round runs each alternative once, so that a slow moment of the machine falls on all of them.
``torch.utils.benchmark.Timer`` times one statement after the other, and would run each of these
three times: it warms up before every measurement.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

A = TypeVar("A")
M = TypeVar("M")


def in_turns(measure: Callable[[A], M], alternatives: Sequence[A], rounds: int) -> list[list[M]]:
    """``measure(alternative)`` of every alternative in every round; a list per alternative."""
    found: list[list[M]] = [[] for _ in alternatives]
    for _ in range(rounds):
        for alternative, row in zip(alternatives, found, strict=True):
            row.append(measure(alternative))
    return found


def milliseconds(function: Callable[[], object], device: str = "cpu") -> float:
    """Wall-clock milliseconds of one call, work on a GPU and its launch included."""
    wait_for(device)
    start = time.perf_counter()
    function()
    wait_for(device)
    return (time.perf_counter() - start) * 1e3


def wait_for(device: str | torch.device) -> None:
    """Until a GPU, which need not be the current one, has done what it was told."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
