"""Verdict on a trained supernet: whether its fixed paths score above chance level."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from detnas_d2.engine.supernet_check.scores import PathScore, known_scores

DEVIATIONS = 3.0
"""Binomial standard deviations that the mean top-k accuracy has to lie above chance."""
POINTS = 0.5
"""Points, of 100, that the best score of any other task has to lie above chance."""


@dataclass(frozen=True)
class Verdict:
    """Whether a supernet scores above chance, in the units of the metric.

    Attributes:
        chance: level of chance.
        threshold: ``value`` of a supernet that learned is above it; None if nothing can be told.
        value: of the fixed paths, what is compared with it; None if a path has no score.
        rule: what was expected, in words.
    """

    learned: bool
    chance: float
    threshold: float | None
    value: float | None
    rule: str


def judge(
    scores: Sequence[PathScore],
    initial: Sequence[PathScore],
    images: int,
    constant: float | None,
) -> Verdict:
    """Compares the scores of a trained supernet with chance.

    Classification: the mean of the paths is above the accuracy p of a constant answer by
    :data:`DEVIATIONS` standard deviations sqrt(p (1 - p) / images), those of one path, since paths
    err on the same images. Other tasks: the best path is above the best one with random weights by
    :data:`POINTS`. A path that cannot be scored, as of diverged weights, has not learned. Where
    100 % would not be enough, nothing is told against the supernet.

    Args:
        initial: of the same paths with random weights.
        constant: see :class:`CheckPlan`.
    """
    known = known_scores(scores)
    chance = max(known_scores(initial), default=0.0) if constant is None else constant
    if constant is None:
        threshold, value = chance + POINTS, max(known, default=0.0)
        why = f"the best path above {threshold:.2f}, {POINTS:g} more than that of random weights"
    else:
        share = constant / 100
        threshold = chance + 100 * DEVIATIONS * math.sqrt(share * (1 - share) / images)
        value = statistics.fmean(known) if known else 0.0
        why = (
            f"the mean above {threshold:.2f}, {DEVIATIONS:g} binomial standard deviations of "
            f"{images} images more than a constant answer"
        )
    if len(known) < len(scores):
        return Verdict(False, chance, threshold, None, f"{why}, and a score of every path")
    if threshold >= 100:
        why = f"nothing: {images} images of so few classes cannot tell it from a constant answer"
        return Verdict(True, chance, None, value, why)
    return Verdict(value > threshold, chance, threshold, value, why)
