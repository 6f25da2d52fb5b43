"""The table that a search reckoned latencies by, and how it was checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from detnas_d2.config.resolutions import resolutions_of
from detnas_d2.engine.architectures import searched_space
from detnas_d2.engine.proposals import latency_files, read_latency
from detnas_d2.report.figures import INK, SERIES, legend_below, new_axes, style, svg
from detnas_d2.report.found import FoundStage
from detnas_d2.search_space.latency import check_text


@dataclass(frozen=True)
class TablePart:
    """Sentences about the tables, one for each size of images, and the figures of their checks."""

    sentences: list[str]
    figures: list[tuple[Markup, str]]


def table_part(search: FoundStage) -> TablePart | None:
    """Of a search whose candidates have a latency; None of any other.

    Raises:
        InputError: a table is gone, or is no table of the search's space any more.
    """
    if not any(record.latency_ms is not None for record in search.history):
        return None
    cfg = search.config
    cfg.defrost()
    # The run may have been moved since, with the table in it.
    named, place = cfg.SEARCH.LATENCY_TABLE, cfg.OUTPUT_DIR
    if named and not os.path.exists(named):
        moved = os.path.join(search.folder, os.path.relpath(named, place))
        cfg.SEARCH.LATENCY_TABLE = os.path.normpath(moved)
    cfg.OUTPUT_DIR = search.folder
    space, part = searched_space(cfg), TablePart([], [])
    for number, file in enumerate(latency_files(cfg, resolutions_of(cfg))):
        table = read_latency(file, space)
        text = f"Latencies are by {os.path.basename(file)}, {table.about}"
        check = table.check
        if check:
            text += f". It was checked with {check_text(check)}"
            part.figures.append(_figure(check["detectors"], number))
        part.sentences.append(text)
    return part


def _figure(detectors: list[dict[str, Any]], number: int) -> tuple[Markup, str]:
    """What the table says over what was measured, on the same scale."""
    measured, told = ([float(d[key]) for d in detectors] for key in ("measured", "table"))
    ends = [min(*measured, *told), max(*measured, *told)]
    with style():
        figure, (axis,) = new_axes()
        axis.plot(ends, ends, "--", color=INK, linewidth=1.2, label="equal")
        axis.scatter(measured, told, s=22, color=SERIES[0], alpha=0.7, label="a detector")
        axis.set(xlabel="measured, ms", ylabel="by the table, ms")
        legend_below(figure, axis)
        text = f"Check of the latency table with {len(detectors)} detectors it was not fitted to."
        return svg(figure, f"latency-table-{number}", text), text
