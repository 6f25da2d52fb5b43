"""Searches and supernets of an output folder, for its page."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from detnas_d2.engine.architectures import searchable_backbone
from detnas_d2.engine.gradient_search import SCREENING_FILE
from detnas_d2.engine.supernet_check.record import read_record, spread_text
from detnas_d2.evaluation import CandidateRecord
from detnas_d2.pipeline.state import read_json
from detnas_d2.report.figures import shown
from detnas_d2.report.found import Found, FoundStage, best_record
from detnas_d2.report.search_figures import (
    COST_NAMES,
    choices_figure,
    cost_figures,
    generations_figure,
    last_values,
    lines_figure,
)
from detnas_d2.search.diagnostics import choice_frequencies, pareto_front
from detnas_d2.search.front_file import has_front
from detnas_d2.search.gradient.screening_record import read_screening
from detnas_d2.search.history import HEADER_FILE
from detnas_d2.utils.errors import InputError

_FRONT = 25  # lines


@dataclass(frozen=True)
class SearchPart:
    """A search by sampling.

    Attributes:
        counts: of the candidates: evaluated, failed, generations.
        traded: it has several objectives, so that ``best`` is what it recommends.
        front: the fittest at every cost, fittest last.
        seconds: what scoring a candidate took, by pass, summed.
    """

    title: str
    metric: str
    evaluated: int
    failed: int
    generations: int
    best: CandidateRecord | None
    traded: bool
    front: list[CandidateRecord]
    seconds: dict[str, float]
    figures: list[tuple[Markup, str]]
    certificate: dict[str, Any] | None


def search_part(found: Found, search: FoundStage) -> SearchPart | None:
    """The search ``search``, and beside it the best of all seeds'; None before any candidate.

    Raises:
        InputError: a damaged history.
    """
    records = search.history
    if not records:
        return None
    told, metric = read_json(search.folder, HEADER_FILE).get("fingerprint"), search.fitness_metric
    best = best_record(search)
    front: list[CandidateRecord] = []
    figures: list[tuple[Markup, str]] = []
    if best is not None:
        others = [stage for stage in found.of_kind("search") if stage.folder != search.folder]
        runs = {stage.title: stage.history for stage in (search, *others) if stage.history}
        figures.append(
            (
                generations_figure(runs, metric),
                "Fitness over generations. Dots: candidates"
                + (f" of {search.title}" if len(runs) > 1 else "")
                + "; dashed: their mean; lines: best so far.",
            )
        )
        costs = _costs_of(told) or (
            ["latency_ms" if all(r.latency_ms is not None for r in records) else "macs"]
        )
        alive = [record for record in records if record.fitness is not None]
        if all(getattr(record, cost) is not None for cost in costs for record in alive):
            front = pareto_front(records, *costs)
            if not has_front(search.folder):  # the front's own section has them
                figures += cost_figures(records, best, costs, metric)
    frequencies = choice_frequencies(records)
    text = "What candidates chose in each layer: share of each operation, first to last generation."
    if all(op.startswith("@") for op in frequencies[max(frequencies)][-1]):
        text += " The last row has the size of the images."
    figures.append((choices_figure(frequencies), text))
    seconds: dict[str, float] = {}
    for record in records:
        for name, value in record.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + value
    return SearchPart(
        search.title,
        metric,
        len(records),
        sum(record.error is not None for record in records),
        max(record.generation for record in records),
        best,
        bool(_costs_of(told)),
        front[-_FRONT:],
        seconds,
        figures,
        certificate_of(found),
    )


def _costs_of(told: Any) -> list[str]:
    """Costs that a search of several objectives minimised, by its ``search.json``; else none."""
    try:
        objectives = told["searcher"]["settings"]["objectives"]
    except (KeyError, TypeError):
        return []
    return [cost for cost in objectives if cost in COST_NAMES]


def certificate_of(found: Found) -> dict[str, Any] | None:
    """What ``diagnose.py fidelity`` found, if its output lies in the folder or next below."""
    for place in found.places:
        if not os.path.isfile(os.path.join(place, "truth.json")):
            continue
        try:
            with open(os.path.join(place, "report.json"), encoding="utf-8") as file:
                told = json.load(file)
            own = told["rankers"].get("supernet")
            return {
                "folder": place,
                "level": told["level"],
                "networks": told["networks"],
                "seeds": told["seeds"],
                "ceiling": told["ceiling"],
                "tau": own["tau"] if own else None,
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


@dataclass(frozen=True)
class GradientPart:
    """Searches by gradient and the screenings before them."""

    genotype: str
    figures: list[tuple[Markup, str]]
    screenings: list[dict[str, Any]]


def gradient_part(found: Found, seed: int | None) -> GradientPart | None:
    """Of one seed's run; None where nothing was screened or searched by gradient.

    Raises:
        InputError: a damaged file of a screening.
    """
    stages = found.of_kind("gradient", seed=seed)
    screens = found.of_kind("screen", seed=seed)
    if not stages and not screens:
        return None
    figures: list[tuple[Markup, str]] = []
    for stage in stages[:1]:
        figures += architecture_figures(stage)
    screenings = []
    for stage in screens:
        told = _screening(stage)
        if told is not None:
            screenings.append(told)
            figures.append(told.pop("figure"))
    genotype = next((stage.results.get("genotype", "") for stage in stages), "")
    return GradientPart(str(genotype), figures, screenings)


def architecture_figures(stage: FoundStage) -> list[tuple[Markup, str]]:
    """How sure a search by gradient gets, and what it expects to cost: figures and their texts."""
    lines = stage.metrics
    keys = sorted({key for line in lines for key in line})
    parts = [key for key in keys if key.startswith("arch/entropy_")]
    figures = []
    series = {key.removeprefix("arch/entropy_"): last_values(lines, key) for key in parts}
    series = {name: values for name, values in series.items() if values[0]}
    if series:
        first = max(values[0] for _, values in series.values())
        least = min(values[-1] for _, values in series.values())
        text = (
            "Entropy of the architecture parameters: it falls as the search makes up its mind, "
            f"from {first:.2f} nats in the beginning to {least:.2f} in the surest part."
        )
        figure = lines_figure("entropy", series, x="iteration", y="entropy, nats", description=text)
        figures.append((figure, text))
    places, gmacs = last_values(lines, "arch/expected_gmacs")
    if places:
        text = "Expected cost of the searchable layers while architecture parameters learn."
        unit, factor = ("GMACs", 1.0) if max(gmacs) >= 1 else ("MMACs", 1e3)
        cost = {"expected": (places, [factor * value for value in gmacs])}
        figure = lines_figure("expected", cost, x="iteration", y=unit, description=text)
        figures.append((figure, text))
    return figures


def _screening(stage: FoundStage) -> dict[str, Any] | None:
    file = stage.file(SCREENING_FILE)
    if not os.path.isfile(file):  # not written yet
        return None
    told = read_screening(file)
    series = {
        shown(op, 22): (told.iterations[: len(values)], values)
        for op, values in told.scores.items()
        if op in told.kept
    }
    text = f"Screening of the {told.part}: scores of the {len(told.kept)} operations that it kept."
    name = f"screening-{''.join(letter for letter in told.part if letter.isalnum())}"
    figure = lines_figure(name, series, x="iteration", y="score", description=text)
    return {
        "part": told.part,
        "kept": told.kept,
        "removed": told.removed,
        "figure": (figure, text),
    }


@dataclass(frozen=True)
class Learned:
    """Whether a supernet learned: a line about its :mod:`supernet_check`."""

    name: str
    metric: str
    paths: int
    spread: str
    chance: float
    alone: float | None
    learned: bool


@dataclass(frozen=True)
class SupernetPart:
    """Trainings of supernets, and of the winner."""

    lines: list[Learned] = field(default_factory=list)
    figures: list[tuple[Markup, str]] = field(default_factory=list)


def supernet_part(found: Found, winner: FoundStage | None) -> SupernetPart | None:
    """Supernets of all seeds, and the training of the winner; None without any curve."""
    nets = [s for s in found.of_kind("train") if is_supernet(s)]
    part = SupernetPart()
    records = [(stage, read_record(stage.folder)) for stage in nets]
    for stage, record in records:
        if record is not None:
            alone = record["standalone"]
            part.lines.append(
                Learned(
                    stage.title,
                    str(record["metric"]),
                    len(record["paths"]),
                    spread_text(record),
                    float(record["chance"]),
                    alone["score"] if alone else None,
                    bool(record["learned"]),
                )
            )
    losses = {shown(s.title, 24): smooth(*last_values(s.metrics, "total_loss")) for s in nets}
    losses = {name: values for name, values in losses.items() if len(values[0]) > 1}
    if losses:
        text = "Loss of the supernet over its training."
        figure = lines_figure("supernet-loss", losses, x="iteration", y="loss", description=text)
        part.figures.append((figure, text))
    scores = {shown(s.title, 24): last_values(s.metrics, "supernet/score_mean") for s in nets}
    scores = {name: values for name, values in scores.items() if len(values[0]) > 1}
    if scores:
        known = [record for _, record in records if record is not None]
        levels = {"chance": max(record["chance"] for record in known)} if known else {}
        text = "Mean score of fixed paths with the supernet's weights, as a search scores them."
        metric = known[0]["metric"] if known else "score"
        figure = lines_figure(
            "supernet-score",
            scores,
            x="iteration",
            y=shown(metric),
            description=text,
            levels=levels,
        )
        part.figures.append((figure, text))
    if winner is not None and winner.kind == "train":
        values = smooth(*last_values(winner.metrics, "total_loss"))
        if len(values[0]) > 1:
            text = f"Loss of {winner.title} over its training."
            series = {shown(winner.title): values}
            figure = lines_figure("winner-loss", series, x="iteration", y="loss", description=text)
            part.figures.append((figure, text))
    return part if part.lines or part.figures else None


def is_supernet(stage: FoundStage) -> bool:
    """Whether a training stage trains a supernet."""
    if read_record(stage.folder) is not None:
        return True
    try:
        cfg = stage.config
    except InputError:
        return False
    return bool(searchable_backbone(cfg) or cfg.MODEL.HIT.SEARCHABLE_PARTS)


def smooth(
    places: Sequence[float], heights: Sequence[float], most: int = 200
) -> tuple[list[float], list[float]]:
    """Means over stretches of the same length, at most ``most``, that are not all NaN."""
    step = max(1, math.ceil(len(places) / most))
    x, y = [], []
    for start in range(0, len(places), step):
        x.append(places[min(start + step, len(places)) - 1])
        y.append(sum(heights[start : start + step]) / len(heights[start : start + step]))
    return x, y
