"""Figures of a search: its fitness, choices and calibration. Need matplotlib, no display."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from detnas_d2.evaluation import CandidateRecord
from detnas_d2.programs.size_comparison import SizeComparison
from detnas_d2.report.search_figures import COST_NAMES
from detnas_d2.utils.figures import new_figure, save_figure


def draw_history(
    records: Sequence[CandidateRecord],
    generations: Mapping[int, list[float]],
    front: Sequence[CandidateRecord],
    cost: str,
    file: str,
) -> None:
    """Fitness over the generations, and over the cost with the front as a line."""
    from matplotlib.ticker import MaxNLocator

    figure, (left, right) = new_figure(2)
    told = [(number, values) for number, values in generations.items() if values]
    numbers = [number for number, _ in told]
    for number, values in told:
        left.scatter([number] * len(values), values, s=8, color="tab:gray")
    left.plot(numbers, [statistics.fmean(values) for _, values in told], label="mean")
    left.plot(numbers, [max(values) for _, values in told], label="best")
    left.set(xlabel="generation", ylabel="fitness")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend()
    name, unit = COST_NAMES[cost]
    alive = [record for record in records if record.fitness is not None]
    costs, colors = [getattr(r, cost) * unit for r in alive], [r.generation for r in alive]
    points = right.scatter(costs, [r.fitness for r in alive], s=8, c=colors)
    steps = [getattr(r, cost) * unit for r in front], [r.fitness for r in front]
    right.step(*steps, where="post", color="tab:red")
    right.set(xlabel=name, ylabel="fitness")
    figure.colorbar(points, label="generation", ticks=MaxNLocator(integer=True))
    save_figure(figure, file)


def draw_choices(frequencies: dict[int, tuple[dict[str, float], ...]], file: str) -> None:
    """A stacked bar for each generation, an axis for each layer."""
    from matplotlib import colormaps

    layers = list(zip(*frequencies.values(), strict=True))
    ops = dict.fromkeys(op for generations in layers for op in generations[0])
    palette: Any = colormaps["tab10" if len(ops) <= 10 else "tab20"]
    figure, axes = new_figure(len(layers))
    for layer, (axis, generations) in enumerate(zip(axes, layers, strict=True)):
        bottom = [0.0] * len(generations)
        for op, color in zip(ops, palette.colors * 2, strict=False):
            shares = [generation.get(op, 0.0) for generation in generations]
            axis.bar(list(frequencies), shares, bottom=bottom, color=color, label=op)
            bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
        axis.set(title=f"layer {layer}", ylim=(0, 1), xlabel="generation", ylabel="share")
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(ops))
    save_figure(figure, file)


def draw_calibration(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], file: str) -> None:
    """Each column over the number of calibration images."""
    images = [row["images"] for row in rows]
    figure, axes = new_figure(len(columns))
    for column, axis in zip(columns, axes, strict=True):
        axis.plot(images, [row[column] for row in rows], "o-")
        axis.set(xscale="log", xlabel="calibration images", title=column.replace("_", " "))
        axis.set_xticks(images, [str(number) for number in images])
        axis.minorticks_off()
    save_figure(figure, file)


def draw_sizes(found: SizeComparison, file: str) -> None:
    """Left: random networks by their fitness at the least and at the largest size, means over the
    supernets. Right: for each two sizes the tau between supernets at them, and what it would be if
    the order did not depend on the size, with 95 % intervals.
    """
    figure, (left, right) = new_figure(2)
    figure.set_size_inches(10, 4.2)
    low, high = found.sizes[0], found.sizes[-1]
    if found.scored:
        places = [found.of_random(size).mean(axis=0) for size in (low, high)]
        left.scatter(*places, s=14, color="tab:blue")
    left.set(xlabel=f"fitness at {low} pixels", ylabel=f"fitness at {high} pixels")
    left.set_title(f"{len(found.scored)} random networks, mean of {len(found.scores)} supernets")
    for shift, name, label, colour in (
        (-0.1, "expected", "if the size did not matter", "tab:gray"),
        (0.1, "across", "one supernet at each size", "tab:orange"),
    ):
        taus = [getattr(told, name) for told in found.agreements.values()]
        bars = [[t.value - t.low for t in taus], [t.high - t.value for t in taus]]
        places = [place + shift for place in range(len(taus))]
        style: Any = {"fmt": "o", "color": colour, "ms": 5, "label": label}
        right.errorbar(places, [t.value for t in taus], bars, **style)
    right.axhline(0, color="tab:gray", lw=0.8)
    right.set_xticks(range(len(found.agreements)), [f"{a} and {b}" for a, b in found.agreements])
    right.set(xlabel="shortest sides, pixels", ylabel="Kendall's tau")
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    save_figure(figure, file)
