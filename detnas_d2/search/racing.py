"""Racing: stop evaluating candidates that cannot reach the current parents. Approximate.

The validation images are cut into S shards. After m of them a candidate is compared, shard by
shard, with its opponent: the worst of the parents that the generations before have given. With
d_i = (fitness on shard i) - (the opponent's), it is stopped when

    mean(d) + t(confidence, m - 1) * sd(d) * sqrt((1 - m / S) / m) < 0,

a one-sided Student bound with the correction for drawing m of S shards without replacement.
It is approximate in three ways: the fitness on all images is not the mean of the fitness on shards
(AP is not additive), shards are few and their differences need not be normal, and a candidate is
looked at after every shard. A stopped candidate gets the fitness of its opponent plus mean(d).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from detnas_d2.search.candidate import CandidateRecord
from detnas_d2.search.searcher import GenerationSearcher

_SHARD = "racing/shard_{}"
SHARDS_SEEN = "racing/shards"
"""Metric of a candidate that was stopped: how many shards it was evaluated on."""


@dataclass(frozen=True)
class RacingSettings:
    """How candidates race.

    Attributes:
        shards: parts of the validation images.
        min_shards: no candidate is stopped before as many.
        confidence: of the one-sided bound, per look; 1: nobody is stopped (to measure).

    Raises:
        ValueError: naming the setting that is wrong.
    """

    shards: int = 10
    min_shards: int = 3
    confidence: float = 0.99

    def __post_init__(self) -> None:
        if not 2 <= self.min_shards <= self.shards:
            raise ValueError(
                f"SEARCH.RACING.MIN_SHARDS must be between 2 and SHARDS ({self.shards}), got "
                f"{self.min_shards}"
            )
        if not 0.5 < self.confidence <= 1:
            raise ValueError(f"SEARCH.RACING.CONFIDENCE must be in (0.5, 1], got {self.confidence}")


class Race:
    """Who the opponent of a generation is, and who cannot reach it.

    Args:
        records: of the search, growing; the shard scores of earlier candidates are in them, so a
            resumed search races as an uninterrupted one.
        searcher: tells the generation and the number of parents.
    """

    def __init__(
        self,
        settings: RacingSettings,
        records: Iterable[CandidateRecord],
        searcher: GenerationSearcher,
    ) -> None:
        self.settings = settings
        self._records = records
        self._searcher = searcher

    def opponent(self) -> CandidateRecord | None:
        """The worst of the fittest of earlier generations; None in the first generation."""
        return opponent_of(self._searcher.generation, self._searcher.num_parents, self._records)

    def judge(
        self, scores: Sequence[float], opponent: CandidateRecord | None
    ) -> tuple[float, dict[str, float]] | None:
        """Fitness and metrics of a candidate that cannot reach its opponent; else None.

        Args:
            scores: fitness on the first shards.
        """
        if opponent is None:
            return None
        differences = paired_differences(scores, shard_scores(opponent.metrics))
        if not hopeless(differences, len(scores), self.settings):
            return None
        estimate = opponent.fitness + sum(differences) / len(differences)
        return estimate, {SHARDS_SEEN: float(len(scores)), **shard_metrics(scores)}


def opponent_of(
    generation: int, parents: int, records: Iterable[CandidateRecord]
) -> CandidateRecord | None:
    """The worst of the ``parents`` fittest completely evaluated before ``generation``."""
    complete = [
        record
        for record in records
        if record.generation < generation
        and record.fitness is not None
        and SHARDS_SEEN not in record.metrics
        and shard_scores(record.metrics)
    ]
    complete.sort(key=lambda record: (-record.fitness, record.generation, record.position))
    return complete[:parents][-1] if complete else None


def shard_metrics(scores: Sequence[float]) -> dict[str, float]:
    """Fitness on shards as metrics of a record."""
    return {_SHARD.format(index): score for index, score in enumerate(scores)}


def shard_scores(metrics: Mapping[str, float | None]) -> list[float]:
    """Inverse of :func:`shard_metrics`; NaN where the fitness on a shard is undefined."""
    scores: list[float] = []
    while _SHARD.format(len(scores)) in metrics:
        value = metrics[_SHARD.format(len(scores))]
        scores.append(math.nan if value is None else value)
    return scores


def paired_differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Shard by shard, where both are defined."""
    pairs = zip(ours, theirs, strict=False)
    return [a - b for a, b in pairs if math.isfinite(a) and math.isfinite(b)]


def hopeless(differences: Sequence[float], seen: int, settings: RacingSettings) -> bool:
    """Whether the bound of the module's docstring, after ``seen`` shards, is below 0."""
    count = len(differences)
    if settings.confidence == 1 or count < settings.min_shards or seen >= settings.shards:
        return False
    mean = sum(differences) / count
    variance = sum((d - mean) ** 2 for d in differences) / (count - 1)
    spread = math.sqrt(variance * (1 - seen / settings.shards) / count)
    return mean + student_quantile(settings.confidence, count - 1) * spread < 0


def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution, 0.5 < probability < 1, by bisection."""
    low, high = 0.0, 1.0
    while _student_cdf(high, degrees) < probability:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _student_cdf(t: float, degrees: int) -> float:
    """For t >= 0 and integer degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(degrees))
    cosine = math.cos(theta)
    if degrees % 2:
        term, total = cosine, 0.0
        for k in range(1, degrees - 1, 2):
            total += term
            term *= cosine * cosine * (k + 1) / (k + 2)
        inside = 2 / math.pi * (theta + math.sin(theta) * total)
    else:
        term, total = 1.0, 0.0
        for k in range(0, degrees - 1, 2):
            total += term
            term *= cosine * cosine * (k + 1) / (k + 2)
        inside = math.sin(theta) * total
    return (1 + inside) / 2
