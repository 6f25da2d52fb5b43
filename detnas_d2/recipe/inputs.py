"""Datasets of a run, and what its user asked for, as its configs need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detnas_d2.engine.runtimes import PYTORCH
from detnas_d2.recipe.weights import Start


@dataclass(frozen=True)
class Data:
    """The datasets of a run.

    Attributes:
        declarations: entries of DATASETS.REGISTER.
        train, test, val: names; ``val`` "" without a dataset of its own.
        classes: names.
        remarks: what is to be known about them, one line each: entries that were left out, images
            on both sides, what was chosen.
    """

    declarations: Sequence[Mapping[str, Any]]
    train: str
    test: str
    val: str
    classes: Sequence[str]
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Settings:
    """What a user asked for besides.

    Attributes:
        output: folder of the run, absolute.
        start: weights to start from.
        max_ms, latency_table: limit of a path by a file of milliseconds; 0 and "" for none.
        runtime: that milliseconds are of, one of :mod:`detnas_d2.engine.runtimes`.
    """

    output: str
    seed: int = 0
    start: Start = Start()
    max_ms: float = 0.0
    latency_table: str = ""
    runtime: str = PYTORCH
