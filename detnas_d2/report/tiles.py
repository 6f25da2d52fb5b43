"""Numbers about the network to use, on top of the page."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from detnas_d2.modeling.hit.build import searched_channels
from detnas_d2.pipeline.export_record import read_exports
from detnas_d2.pipeline.manifest import SEARCHED
from detnas_d2.report.exported import signed_thousandths
from detnas_d2.report.found import Found
from detnas_d2.report.networks import Winner
from detnas_d2.report.tested import Tested
from detnas_d2.utils.errors import InputError

_NAMES = {"bbox/AP": "AP", "bbox/AP50": "AP50", "classification/top1": "top-1"}


@dataclass(frozen=True)
class Tile:
    """A number: what it is, its value, a note below it."""

    name: str
    value: str
    note: str = ""


def headline(winner: Winner | None) -> str:
    if winner is None:
        return "Nothing is found yet"
    if winner.row is None:
        return "The search's best network so far"
    return "The searched network" if winner.row.origin == SEARCHED else "The network"


def tiles(found: Found, winner: Winner | None, metric: str, tested: Tested) -> list[Tile]:
    """Score, cost, latency and size, those that are known."""
    if winner is None:
        return []
    return [
        *_scores(found, winner, metric, tested),
        *_costs(winner),
        *_checkpoint(winner.checkpoint),
        *_exports(winner.checkpoint, metric),
    ]


def _scores(found: Found, winner: Winner, metric: str, tested: Tested) -> list[Tile]:
    told = []
    name, row, record = _NAMES.get(metric, metric), winner.row, winner.record
    if row is None:
        if record is not None and record.fitness is not None:
            note = "with the supernet's weights, on validation images; no test yet"
            told.append(Tile("fitness", f"{record.fitness:.1f}", note))
        return told
    value = winner.stage.result(metric)
    if value is not None:
        note = ""
        if tested.interval is not None and tested.matches is not None and metric == "bbox/AP":
            low, high = tested.interval
            count = len(tested.matches.images)
            note = f"{low:.1f} to {high:.1f}: 95 % interval over {count} test images"
        told.append(Tile(name, f"{value:.1f}", note))
    mean, count = row.mean(metric), len(row.numbers(metric))
    if mean is not None and count > 1:
        note = f"mean ± standard deviation of {count} networks"
        told.append(Tile(f"{name}, all", f"{mean[0]:.1f} ± {mean[1]:.1f}", note))
    return told


def _costs(winner: Winner) -> list[Tile]:
    told = []
    cost: tuple[float, float] | None = winner.row.cost if winner.row is not None else None
    record = winner.record
    if record is not None and record.macs is not None and record.params is not None:
        cost = record.macs, record.params
    if cost is not None:
        macs, params = cost
        unit, number = ("GMACs", macs / 1e9) if macs >= 1e9 else ("MMACs", macs / 1e6)
        note = f"multiply-adds of {_counted(winner)}, {params / 1e6:.3g} M parameters"
        told.append(Tile("cost", f"{number:.3g} {unit}", note))
    if record is not None and record.resolution is not None:
        told.append(Tile("images", f"{record.resolution} px", "shortest side, searched too"))
    measured = winner.latency
    runtimes = measured.runtimes if measured is not None else {}
    for runtime, own in runtimes.items():
        assert measured is not None
        note = (
            f"of {measured.conditions_of(runtime)}: median of {measured.runs} runs, quartiles "
            f"{own.low:.3g} and {own.high:.3g}; {own.before:.3g} before the network, "
            f"{own.after:.3g} after it"
        )
        told.append(Tile("latency", f"{own.milliseconds:.3g} ms", note))
    if record is not None and record.latency_ms is not None:
        name = "latency by table" if runtimes else "latency"
        note = "by the search's latency table"
        told.append(Tile(name, f"{record.latency_ms:.3g} ms", note))
    return told


def _counted(winner: Winner) -> str:
    """What the costs of a search's candidates are of."""
    with suppress(InputError):  # a config that cannot be read
        if winner.search is not None and searched_channels(winner.search.config):
            return "the whole detector"
    return "what is searched"


def _exports(checkpoint: str, metric: str) -> list[Tile]:
    """Scores of the files that were exported of it."""
    if not checkpoint:
        return []
    name, folder = os.path.basename(checkpoint), os.path.dirname(checkpoint)
    told = []
    for record in read_exports(folder):
        difference = record.difference(metric)
        if record.weights == name and difference is not None:
            note = f"of {record.file}: {signed_thousandths(difference)} against PyTorch"
            title = f"{_NAMES.get(metric, metric)}, exported"
            told.append(Tile(title, f"{record.exported[metric]:.1f}", note))
    return told


def _checkpoint(file: str) -> list[Tile]:
    if not file:
        return []
    return [Tile("checkpoint", f"{os.path.getsize(file) / 1e6:.3g} MB", os.path.basename(file))]
