"""Speeds of a machine, from which the lengths of a run are computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Rates:
    """Seconds on this machine; those of single networks next to as many others as the plan runs
    at a time.

    Attributes:
        step: of an iteration of the supernet, or of Hit-Detector's relaxed network.
        tune: of an iteration of one network.
        candidate: of scoring one candidate of the search; 0 for Hit-Detector.
        image: of one image in testing.
        start: of what a stage does besides.
        baseline: of an iteration of a baseline; 0 without one.
        process: until the processes of stages that run side by side are there; 0 without any.
    """

    step: float
    tune: float
    candidate: float
    image: float
    start: float
    baseline: float = 0.0
    process: float = 0.0

    def times(self, factor: float) -> Rates:
        """Those of a machine that takes ``factor`` times as long."""
        return Rates(**{name: value * factor for name, value in asdict(self).items()})


UNKNOWN = Rates(0.0, 0.0, 0.0, 0.0, 0.0)
"""Before anything is measured."""
