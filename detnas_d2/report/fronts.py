"""Fronts of several searches on the page: their hypervolumes, over the evaluations and tested."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from markupsafe import Markup

from detnas_d2.pipeline.fronts import FRONTS_FILE, FrontComparison
from detnas_d2.report.figures import color, legend_below, new_axes, shown, style, svg
from detnas_d2.report.found import Found
from detnas_d2.utils.errors import InputError


@dataclass(frozen=True)
class FrontsPart:
    """A comparison and its figure."""

    head: list[str]
    rows: list[list[str]]
    sentences: list[str]
    figures: list[tuple[Markup, str]]


def fronts_part(found: Found) -> FrontsPart | None:
    """Of the searches of a folder, or of what ``diagnose.py fronts`` left in a folder next below;
    None where nobody has compared any.

    Raises:
        InputError: a damaged file.
    """
    files = (os.path.join(place, FRONTS_FILE) for place in found.places)
    file = next(filter(os.path.isfile, files), None)
    if file is None:
        return None
    try:
        with open(file, encoding="utf-8") as text:
            compared = FrontComparison.from_dict(json.load(text))
    except ValueError as error:
        raise InputError(f"{file}: {error}") from error
    head, *rows = compared.table()
    return FrontsPart(head, rows, compared.sentences(), [_figure(compared)])


def _figure(found: FrontComparison) -> tuple[Markup, str]:
    """Hypervolume over the evaluations: a thin line for each seed, a thick one for their mean."""
    with style():
        figure, (axis,) = new_axes()
        for number, name in enumerate(found.searches):
            runs = [row.values[name] for row in found.curve]
            for seed in runs[0]:
                values = [run[seed][0] for run in runs]
                axis.plot(found.evaluations, values, color=color(number), alpha=0.35, linewidth=0.8)
            means = [sum(of_seed[0] for of_seed in run.values()) / len(run) for run in runs]
            label = shown(name)
            axis.plot(found.evaluations, means, "o-", color=color(number), ms=4, label=label)
        axis.set(xlabel="evaluations", ylabel="hypervolume by fitness")
        legend_below(figure, axis)
        text = "Hypervolume of the front so far over evaluations: each seed thin, the mean thick"
        return svg(figure, "fronts", text), text
