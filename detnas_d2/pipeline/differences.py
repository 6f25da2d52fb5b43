"""Differences between rows of a table, with 95 % intervals, paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

CONFIDENCE = 0.95
_TIE = 1e-9  # of a percentage

Sample = Mapping[int, Sequence[float]]
"""Seed -> values of the networks of a row that were made with it."""


@dataclass(frozen=True)
class Difference:
    """What the mean of ``row`` in a metric has more than that of ``other``.

    Attributes:
        value: mean over seeds of the mean over a seed's networks, row minus other; None if one is
            undefined.
        low, high: its 95 % interval; None where one seed, or no spread, gives none.
        seeds: of the row that the mean is over; the other's too if they are paired.
        basis: how the interval was made, or why there is none.
        verdict: "above" or "below" if the interval excludes 0, else "".
    """

    row: str
    other: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    seeds: tuple[int, ...]
    basis: str
    verdict: str

    def __str__(self) -> str:
        """A sentence without a full stop; percentages with two decimals."""
        text = f"{self.row} against {self.other}: {self.metric} "
        if self.value is None:
            return f"{text}undefined ({self.basis})"
        text += f"{self.value:+.2f}"
        if self.low is None:
            return f"{text} ({self.basis})"
        interval = f"95 % interval {self.low:+.2f} to {self.high:+.2f}"
        return f"{text}, {interval} ({self.basis}): {self.verdict or 'no difference shown'}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def differences(
    samples: Mapping[str, Mapping[str, Sample]], compared: Iterable[str], unit: str
) -> Iterator[Difference]:
    """Of each row of ``compared`` to every other row, in every metric that both have.

    Args:
        samples: row -> metric -> its values.
        compared: some of the rows.
        unit: what the seeds are of.
    """
    compared = list(compared)
    for position, row in enumerate(compared):
        # A pair that is compared is compared once.
        for other in (name for name in samples if name not in compared[: position + 1]):
            for metric in samples[row]:
                if metric in samples[other]:
                    ours, theirs = samples[row][metric], samples[other][metric]
                    if ours and theirs:
                        yield difference(row, other, metric, ours, theirs, unit)


def difference(
    row: str, other: str, metric: str, ours: Sample, theirs: Sample, unit: str = "seeds"
) -> Difference:
    """Student's t on the differences of the seeds that both have, at least two; where no two are
    common, Welch's t on the seeds of each.
    """
    common = tuple(seed for seed in ours if seed in theirs)
    paired = len(common) > 1
    seeds = common if paired else tuple(ours)
    a = [statistics.fmean(ours[seed]) for seed in seeds]
    b = [statistics.fmean(theirs[seed]) for seed in (common if paired else theirs)]
    value = statistics.fmean(a) - statistics.fmean(b)
    interval: tuple[float, float] | None = None
    if not math.isfinite(value):
        basis = "a network has no score"
    elif min(len(a), len(b)) < 2:
        basis = "one run: no interval"
    else:
        basis = f"paired by {len(a)} {unit}" if paired else f"{len(a)} and {len(b)} other {unit}"
        interval, why = _interval(a, b, paired=paired)
        basis += why
    low, high = interval or (None, None)
    verdict = "" if interval is None or interval[0] <= 0 <= interval[1] else _side(value)
    known = value if math.isfinite(value) else None
    return Difference(row, other, metric, known, low, high, seeds, basis, verdict)


def _side(value: float) -> str:
    return "above" if value > 0 else "below"


def _interval(
    a: Sequence[float], b: Sequence[float], *, paired: bool
) -> tuple[tuple[float, float] | None, str]:
    """Of the difference of the means; else why there is none. Where nothing varies that is no
    certainty but a tie.
    """
    spreads = [[x - y for x, y in zip(a, b, strict=True)]] if paired else [a, b]
    if all(max(values) - min(values) < _TIE for values in spreads):
        return None, ", no spread: no interval"
    try:
        from scipy import stats  # here, so that a pipeline without it loses its interval alone
    except ImportError:
        return None, ", SciPy is not installed: no interval"
    test = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    low, high = test.confidence_interval(CONFIDENCE)
    return (float(low), float(high)), ""


def format_differences(found: Sequence[Difference], missing: int = 0) -> str:
    """A list in Markdown, to stand below its table; "" for nothing.

    Args:
        missing: seeds of the experiment that are not done yet.
    """
    lines = [f"- {difference}" for difference in found]
    if missing:
        lines.append(f"- {missing} more seeds are not done yet")
    return "\n\n" + "\n".join(lines) if lines else ""
