"""The page of an output folder, ``report.html``: one file that needs no network and no other file.

Every section is made of what is there. One that cannot be made, since a file is damaged or data
are gone, is left out, and the page says why.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from detnas_d2 import __version__
from detnas_d2.pipeline.differences import Difference
from detnas_d2.pipeline.manifest import GIVEN, RANDOM, SEARCHED
from detnas_d2.pipeline.state import NOT_STARTED, RUNNING
from detnas_d2.report import facts
from detnas_d2.report.architecture import drawings_of
from detnas_d2.report.exported import exported_part
from detnas_d2.report.family import family_part
from detnas_d2.report.found import Found, FoundStage, read_folder
from detnas_d2.report.front import front_part
from detnas_d2.report.fronts import fronts_part
from detnas_d2.report.late import lateness_of
from detnas_d2.report.latency_table import table_part
from detnas_d2.report.networks import (
    Row,
    Winner,
    main_metric,
    row_differences,
    rows_of,
    winner_of,
)
from detnas_d2.report.recorded import recorded_of
from detnas_d2.report.search_figures import dots_figure
from detnas_d2.report.searches import gradient_part, search_part, supernet_part
from detnas_d2.report.tested import Tested, class_lines, curves, matches_of, pictures
from detnas_d2.report.tiles import headline, tiles
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_text
from detnas_d2.utils.screen import duration

REPORT_FILE = "report.html"
logger = logging.getLogger("detnas_d2.report")

T = TypeVar("T")


def write_page(folder: str) -> str:
    """See :func:`detnas_d2.report.write_report`."""
    file = os.path.join(folder, REPORT_FILE)
    write_text(file, page_of(read_folder(folder)))
    return file


class _Sections:
    """Makes sections; remembers why one could not be made."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def make(self, name: str, build: Callable[[], T]) -> T | None:
        try:
            return build()
        except InputError as error:
            self.problems.append(f"{name}: {error}")
        except Exception as error:  # the rest of the page is worth having
            logger.debug("%s", name, exc_info=True)
            self.problems.append(f"{name} could not be made: {type(error).__name__}: {error}")
        return None


def page_of(found: Found) -> str:
    """The text of the page."""
    sections = _Sections()
    rows = sections.make("Networks", lambda: rows_of(found)) or []
    metric = main_metric(found)
    winner = sections.make("Winner", lambda: winner_of(found, rows))
    stage = winner.stage if winner is not None else None
    other = _beside(winner, rows)
    tested = _tested(sections, winner, other)
    searches = found.of_kind("search")
    search = (winner.search if winner is not None else None) or next(iter(searches), None)
    seed = stage.seed if stage is not None else None
    differences = sections.make("Differences", lambda: row_differences(found, rows)) or []
    own = winner.row.name if winner is not None and winner.row is not None else ""
    origins = {row.name: row.origin for row in rows}
    late = sections.make("Late stages", lambda: lateness_of(found))
    recorded = sections.make("Record", lambda: recorded_of(found))
    context: dict[str, Any] = {
        "title": _title(found),
        "folder": os.path.abspath(found.folder),
        "now": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "version": __version__,
        "metric": metric,
        "winner": winner,
        "headline": headline(winner),
        "tiles": tiles(found, winner, metric, tested),
        "state": _state(found),
        "rows": rows,
        "columns": list(dict.fromkeys(key for row in rows for key in row.values)),
        "conditions": list(dict.fromkeys(row.conditions for row in rows if row.latencies)),
        "compared": _compared(differences),
        "told": [
            difference
            for difference in differences
            if difference.row == own and difference.metric == metric
            if origins.get(difference.other) != SEARCHED and difference.value is not None
        ],
        "architecture": _architecture(winner),
        "seeds_many": len(found.seeds) if len(found.seeds) > 1 else 0,
        "dots": sections.make("Figure of the networks", lambda: _dots(rows, metric)),
        "drawings": sections.make("Architecture", lambda: drawings_of(found, winner, other)),
        "other": other,
        "search": search and sections.make("Search", lambda: search_part(found, search)),
        "latency_table": search and sections.make("Latency table", lambda: table_part(search)),
        "front": search and sections.make("Front", lambda: front_part(search)),
        "family": search and sections.make("Family", lambda: family_part(found, search)),
        "fronts": sections.make("Fronts", lambda: fronts_part(found)),
        "exported": sections.make("Exported files", lambda: exported_part(found)),
        "gradient": sections.make("Search by gradient", lambda: gradient_part(found, seed)),
        "supernet": sections.make("Supernet", lambda: supernet_part(found, stage)),
        "tested": tested,
        "times": sections.make("Times", lambda: facts.times(found)) or [],
        "clock": sections.make("Time by the clock", lambda: facts.by_the_clock(found)),
        "late": late,
        "recorded": recorded,
        "environment": sections.make("Machine", lambda: facts.environment(found)) or {},
        "commands": facts.commands(found),
        "seeds": sections.make("Seeds", lambda: facts.seeds_text(found)) or "unknown",
        "datasets": facts.datasets(found),
        "stages": found.stages,
        "pipeline": found.pipeline,
    }
    warned = sections.make("Warnings", lambda: facts.warnings(found)) or []
    problems = [facts.Warned(text, (), serious=True) for text in sections.problems]
    shorter = late.warnings if late is not None else []
    data = recorded.remarks if recorded is not None else ()
    told = [*problems, *shorter, *data, *warned]
    context["warnings"] = sorted(told, key=lambda warning: not warning.serious)
    return _environment().get_template("page.html").render(context)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("detnas_d2.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    environment.filters["signed"] = lambda value: f"{value:+.2f}".replace("-", "\u2212")
    return environment


def _title(found: Found) -> str:
    name = os.path.splitext(os.path.basename(found.pipeline))[0] if found.pipeline else ""
    folder = os.path.basename(os.path.abspath(found.folder))
    return folder if name in ("", "pipeline") else f"{folder} ({name})"


def _state(found: Found) -> dict[str, Any]:
    """How many stages are in which state, and which of them run or are still to come."""
    counts = Counter(stage.state for stage in found.stages)
    return {
        "counts": dict(counts),
        "total": len(found.stages),
        "running": [stage.title for stage in found.stages if stage.state == RUNNING],
        "missing": [stage.title for stage in found.stages if stage.state == NOT_STARTED],
    }


def _compared(differences: list[Difference]) -> dict[tuple[str, str], dict[str, Difference]]:
    """(row, other) -> metric -> difference."""
    found: dict[tuple[str, str], dict[str, Difference]] = {}
    for difference in differences:
        found.setdefault((difference.row, difference.other), {})[difference.metric] = difference
    return found


def _architecture(winner: Winner | None) -> str:
    if winner is None:
        return ""
    return winner.record.path if winner.record is not None else winner.stage.architecture


def _dots(rows: list[Row], metric: str) -> Markup | None:
    groups = {row.name: row.numbers(metric) for row in rows if row.numbers(metric)}
    return dots_figure(groups, metric) if len(groups) > 1 else None


def _beside(winner: Winner | None, rows: list[Row]) -> FoundStage | None:
    """A network that nobody searched to stand beside the winner, one made by hand before others,
    of the winner's run if there is one.
    """
    stages = [
        stage
        for origin in (GIVEN, RANDOM)
        for row in rows
        if row.origin == origin
        for stage in row.stages
        if winner is None or stage.folder != winner.stage.folder
    ]
    seed = winner.stage.seed if winner is not None else None
    return next((s for s in stages if s.seed == seed), next(iter(stages), None))


def _tested(sections: _Sections, winner: Winner | None, other: FoundStage | None) -> Tested:
    if winner is None or winner.row is None:
        return Tested()
    stage = winner.stage
    told = Tested(stage, other)
    if any(key.startswith("bbox/") for key in stage.results):
        told.matches = sections.make("Test images", lambda: matches_of(stage))
    matches = told.matches
    told.lines = sections.make("Classes", lambda: class_lines(stage, matches, other)) or []
    if matches is not None:
        told.interval = sections.make("Interval", lambda: matches.interval)
        told.curves = sections.make("Curves", lambda: curves(matches)) or []
        worst = sections.make("Worst images", lambda: pictures(matches))
        if worst is not None:
            told.pictures, told.threshold = worst
    return told
