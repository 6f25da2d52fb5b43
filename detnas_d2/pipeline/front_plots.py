"""Figure of fronts that are compared: hypervolumes, and their differences, over evaluations."""

from __future__ import annotations

from typing import Any

from detnas_d2.pipeline.differences import Difference
from detnas_d2.pipeline.fronts import FrontComparison
from detnas_d2.utils.figures import new_figure, save_figure

_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:red")
# Of a legend, where no curve and no bar is.
_ABOVE: Any = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3, "frameon": False}


def draw_fronts(found: FrontComparison, file: str) -> None:
    """Left: hypervolume by fitness over the evaluations, a thin line for each seed, a thick one for
    their mean. Right: the first search's less each other's, paired by seed, with 95 % intervals.
    """
    figure, (left, right) = new_figure(2)
    figure.set_size_inches(10, 4.2)
    counts = found.evaluations
    for name, colour in zip(found.searches, _COLOURS, strict=False):
        runs = [row.values[name] for row in found.curve]
        for seed in runs[0]:
            left.plot(counts, [run[seed][0] for run in runs], color=colour, alpha=0.3, lw=0.8)
        means = [sum(v[0] for v in run.values()) / len(run) for run in runs]
        left.plot(counts, means, "o-", color=colour, ms=4, label=name)
    left.set(xlabel="evaluations", ylabel="hypervolume by fitness")
    left.legend(**_ABOVE)
    for number, other in enumerate(found.searches[1:], start=1):
        told = [next(d for d in row.differences if d.other == other) for row in found.curve]
        values = [d.value for d in told]
        label = f"{found.searches[0]} less {other}"
        colour = _COLOURS[number % len(_COLOURS)]
        right.errorbar(counts, values, _bars(told), fmt="o-", color=colour, ms=4, label=label)
    right.axhline(0, color="tab:gray", lw=0.8)
    right.set(xlabel="evaluations", ylabel="difference, paired by seed")
    right.legend(**_ABOVE)
    save_figure(figure, file)


def _bars(told: list[Difference]) -> Any:
    """Lengths of the bars below and above; 0 where there is no interval."""
    lows = [0.0 if d.low is None or d.value is None else d.value - d.low for d in told]
    highs = [0.0 if d.high is None or d.value is None else d.high - d.value for d in told]
    return [lows, highs]
