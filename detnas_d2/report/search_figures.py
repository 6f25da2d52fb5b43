"""Figures of searches: fitness, cost, choices; entropies and sub-spaces of searches by gradient."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from detnas_d2.evaluation import CandidateRecord
from detnas_d2.report.figures import (
    GOOD,
    INK,
    SERIES,
    bars_height,
    color,
    integer_axis,
    legend_below,
    new_axes,
    shown,
    style,
    svg,
)
from detnas_d2.search.diagnostics import fitness_by_generation, pareto_front

COST_NAMES = {
    "macs": ("multiply-adds, millions", 1e-6),
    "params": ("parameters, millions", 1e-6),
    "latency_ms": ("latency by the table, ms", 1.0),
    "memory_bytes": ("memory of the maps, MB", 1e-6),
    "file_bytes": ("weights in a file, MB", 1e-6),
}


def generations_figure(runs: Mapping[str, Sequence[CandidateRecord]], metric: str) -> Markup:
    """Fitness over the generations: candidates, their mean and the best so far.

    Args:
        runs: title -> candidates; of several runs the first one's candidates are drawn, and the
            best of all.
    """
    with style():
        figure, (axis,) = new_axes()
        for number, (title, records) in enumerate(runs.items()):
            generations = {g: v for g, v in fitness_by_generation(records).items() if v}
            if not generations:
                continue
            best, so_far = [], -float("inf")
            for values in generations.values():
                so_far = max(so_far, *values)
                best.append(so_far)
            if not number:
                for generation, values in generations.items():
                    axis.scatter(
                        [generation] * len(values), values, s=14, color=INK, alpha=0.35, zorder=2
                    )
                means = [statistics.fmean(values) for values in generations.values()]
                axis.plot(list(generations), means, "--", color=SERIES[1], label="mean")
            label = "best so far" if len(runs) == 1 else shown(title, 24)
            axis.plot(list(generations), best, color=color(0 if not number else number + 1))
            axis.lines[-1].set_label(label)
        axis.set(xlabel="generation", ylabel=f"fitness, {shown(metric)}")
        integer_axis(axis.xaxis)
        legend_below(figure, axis)
        told = "Candidates' fitness over generations, their mean and the best so far"
        return svg(figure, "generations", told)


def cost_figure(
    records: Sequence[CandidateRecord],
    front: Sequence[CandidateRecord],
    chosen: CandidateRecord | None,
    cost: str,
    metric: str,
) -> Markup:
    """Fitness over cost: the later a candidate's generation, the stronger its colour."""
    label, scale = COST_NAMES[cost]
    alive = [record for record in records if record.fitness is not None]
    last = max(record.generation for record in alive)
    with style():
        figure, (axis,) = new_axes()
        for generation in sorted({record.generation for record in alive}):
            members = [record for record in alive if record.generation == generation]
            axis.scatter(
                [getattr(record, cost) * scale for record in members],
                [record.fitness for record in members],
                s=14,
                color=SERIES[0],
                alpha=round(0.25 + 0.75 * generation / last, 3),
                linewidths=0,
            )
        steps = [getattr(record, cost) * scale for record in front]
        heights = [record.fitness for record in front]
        axis.step(steps, heights, where="post", color=SERIES[1], linewidth=1.6, label="front")
        if chosen is not None:
            place = [getattr(chosen, cost) * scale], [chosen.fitness]
            axis.scatter(
                *place, s=110, facecolors="none", edgecolors=GOOD, linewidths=2, label="chosen"
            )
        axis.set(xlabel=label, ylabel=f"fitness, {shown(metric)}")
        legend_below(figure, axis)
        told = f"Fitness of {len(alive)} candidates over {label}; {len(front)} are on the front"
        return svg(figure, f"cost-{cost}", told)


def cost_figures(
    records: Sequence[CandidateRecord],
    chosen: CandidateRecord | None,
    costs: Sequence[str],
    metric: str,
) -> list[tuple[Markup, str]]:
    """:func:`cost_figure` for each cost with the front over it alone, and their texts."""
    figures = []
    for cost in costs:
        front = pareto_front(records, cost)
        text = (
            f"Fitness over cost, stronger colours for later generations. {len(front)} of "
            f"{len(records)} candidates are on the front: none is fitter at their cost or less."
        )
        figures.append((cost_figure(records, front, chosen, cost, metric), text))
    return figures


def choices_figure(frequencies: Mapping[int, tuple[dict[str, float], ...]]) -> Markup:
    """Shares of the operations in each layer, in the first and in the last generation."""
    first, last = min(frequencies), max(frequencies)
    shown_generations = dict.fromkeys((first, last))
    layers = len(frequencies[last])
    ops = list(dict.fromkeys(op for shares in frequencies[last] for op in shares))
    with style():
        figure, axes = new_axes(len(shown_generations), height=bars_height(layers) + 0.7)
        for axis, generation in zip(axes, shown_generations, strict=True):
            left = [0.0] * layers
            for number, op in enumerate(ops):
                shares = [layer.get(op, 0.0) for layer in frequencies[generation]]
                axis.barh(
                    range(1, layers + 1),
                    shares,
                    left=left,
                    height=0.82,
                    color=color(number),
                    hatch="" if number < len(SERIES) else "//",
                    label=shown(op, 20),
                )
                left = [start + share for start, share in zip(left, shares, strict=True)]
            axis.set(xlim=(0, 1), title=f"generation {generation}", xlabel="share")
            axis.set_xticks([0, 0.5, 1], ["0", "½", "1"])
            axis.grid(visible=False)
        axes[0].invert_yaxis()
        axes[0].set_ylabel("layer")
        axes[0].set_yticks(range(1, layers + 1))
        legend_below(figure, axes[0])
        told = "Share of each operation in each layer, first and last generation"
        return svg(figure, "choices", told)


def lines_figure(
    name: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    description: str,
    levels: Mapping[str, float] | None = None,
    shares: bool = False,
) -> Markup:
    """Lines over one axis.

    Args:
        name: see :func:`svg`.
        series: label -> places and heights.
        levels: label -> height of a level line.
        shares: heights are from 0 to 1, and so is the axis.
    """
    with style():
        figure, (axis,) = new_axes()
        if shares:
            axis.set_ylim(-0.05, 1.05)
        for number, (label, (places, heights)) in enumerate(series.items()):
            marker = "o" if len(places) < 12 else ""
            axis.plot(
                places, heights, marker=marker, markersize=4, color=color(number), label=label
            )
        for number, (label, height) in enumerate((levels or {}).items()):
            dashes = ("dashed", "dotted", "dashdot")[number % 3]
            axis.axhline(height, color=INK, linestyle=dashes, linewidth=1.2, label=label)
        axis.set(xlabel=x, ylabel=y)
        if len(series) + len(levels or {}) > 1:
            legend_below(figure, axis)
        return svg(figure, name, description)


def dots_figure(groups: Mapping[str, Sequence[float]], metric: str) -> Markup:
    """Each network as a dot, a row for each name; means of several as bars."""
    with style():
        figure, (axis,) = new_axes(height=bars_height(len(groups), 1.8))
        for place, values in enumerate(groups.values()):
            axis.scatter(values, [place] * len(values), s=26, color=color(place), alpha=0.65)
            if len(values) > 1:  # a mean of one would hide it
                mean = statistics.fmean(values)
                axis.plot([mean, mean], [place - 0.3, place + 0.3], color=INK, linewidth=2)
        axis.set_yticks(range(len(groups)), [shown(name, 18) for name in groups])
        axis.set_ylim(len(groups) - 0.5, -0.5)
        axis.set(xlabel=f"{shown(metric)}, %")
        axis.grid(visible=False, axis="y")
        told = f"{metric} of every network, by row of the table"
        return svg(figure, "networks", told)


def last_values(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Iterations, from 1, and values of a key of ``metrics.json``."""
    told = [
        (line["iteration"] + 1, float(value))
        for line in lines
        if isinstance(value := line.get(key), (int, float)) and value == value
    ]
    return [place for place, _ in told], [value for _, value in told]
