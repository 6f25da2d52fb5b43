"""Networks of an output folder: rows with means and costs, their differences, the one to use."""

from __future__ import annotations

import math
import os
import shlex
import statistics
from dataclasses import dataclass

from detnas_d2.engine.checkpoint import FINAL
from detnas_d2.engine.inherited import INHERITED_FILE
from detnas_d2.evaluation import CandidateRecord
from detnas_d2.pipeline.differences import Difference, differences
from detnas_d2.pipeline.latency_record import LatencyRecord, read_latency
from detnas_d2.pipeline.manifest import GIVEN, RANDOM, SEARCHED
from detnas_d2.pipeline.report import by_seed, mean_and_deviation, network_cost, unit_of
from detnas_d2.report.found import METRICS, Found, FoundStage, best_record
from detnas_d2.search_space import Cost
from detnas_d2.utils.errors import InputError


@dataclass(frozen=True)
class Row:
    """Networks of one row of the table.

    Attributes:
        values: metric -> seed -> values of its networks, in percent.
        cost: mean over the networks whose cost can be counted, None without one.
        latencies: of the networks that were measured.
    """

    name: str
    origin: str
    stages: tuple[FoundStage, ...]
    values: dict[str, dict[int, list[float]]]
    cost: tuple[float, float] | None
    latencies: tuple[LatencyRecord, ...] = ()

    def numbers(self, metric: str) -> list[float]:
        return [value for values in self.values.get(metric, {}).values() for value in values]

    def mean(self, metric: str) -> tuple[float, float] | None:
        """Mean and standard deviation of a metric over the networks."""
        numbers = self.numbers(metric)
        return mean_and_deviation(numbers) if numbers else None

    @property
    def milliseconds(self) -> float | None:
        """Mean of the latencies under the same conditions as the first."""
        alike = [r.milliseconds for r in self.latencies if r.conditions == self.conditions]
        return statistics.fmean(alike) if alike else None

    @property
    def conditions(self) -> str:
        """Of the first latency."""
        return self.latencies[0].conditions if self.latencies else ""


def main_metric(found: Found) -> str:
    """Metric of the networks, the first of METRICS that one has."""
    keys = {key for stage in found.networks for key in stage.results}
    return next((metric for metric in METRICS if metric in keys), METRICS[0])


def rows_of(found: Found) -> list[Row]:
    """Rows of the networks that are done: those of the table in its order, then all others."""
    names = [*found.table, *(stage.row for stage in found.networks)]
    several = len(found.seeds) > 1
    rows = []
    for name in dict.fromkeys(names):
        stages = [stage for stage in found.networks if stage.row == name]
        if stages:
            rows.append(_row(found, name, stages, several=several))
    if not found.table:  # in the order in which a table lists them
        order = {SEARCHED: 0, RANDOM: 1, GIVEN: 2}
        rows.sort(key=lambda row: (order.get(row.origin, 2), row.stages[0].kind != "train"))
    return rows


def _row(found: Found, name: str, stages: list[FoundStage], *, several: bool) -> Row:
    values: dict[str, dict[int, list[float]]] = {}
    for metric in METRICS:
        told = [(s, value) for s in stages if (value := s.result(metric)) is not None]
        if told:
            seeds = [_seed_of(stage, several=several) for stage, _ in told]
            values[metric] = by_seed(seeds, [value for _, value in told])
    costs = [cost for stage in stages if (cost := cost_of(found, stage)) is not None]
    mean = None
    if costs:
        mean = statistics.fmean(c.macs for c in costs), statistics.fmean(c.params for c in costs)
    records = (latency_of(found, stage) for stage in stages)
    latencies = tuple(record for record in records if record is not None)
    return Row(name, stages[0].origin, tuple(stages), values, mean, latencies)


def _seed_of(stage: FoundStage, *, several: bool) -> int:
    """As :func:`detnas_d2.pipeline.report.seed_of` tells it."""
    if several and stage.seed is not None:
        return stage.seed
    try:
        return stage.config.SEED
    except InputError:
        return stage.seed or 0


def cost_of(found: Found, stage: FoundStage) -> Cost | None:
    """Cost of what is searched of a network, as a pipeline's table counts it; None where its
    config does not tell.
    """
    try:
        cfg = stage.config
        searches = found.of_kind("search", seed=stage.seed)
        limits = searches[0].config if searches else cfg
        return network_cost(cfg, stage.architecture, limits)
    except (InputError, KeyError, RuntimeError):  # of a part that is not of this project
        return None


def latency_of(found: Found, stage: FoundStage) -> LatencyRecord | None:
    """What was measured of a stage's network; of one that was evaluated with the weights of a
    search, in the folder of that.
    """
    record = read_latency(stage.folder)
    if record is None and stage.kind == "evaluate":
        searches = found.of_kind("search", seed=stage.seed)
        best = {search.folder: best_record(search) for search in searches}
        places = [f for f, told in best.items() if told and told.path == stage.architecture]
        record = next((told for f in places if (told := read_latency(f)) is not None), None)
    return record


def row_differences(found: Found, rows: list[Row]) -> list[Difference]:
    """Of the rows that the pipeline compares, else of the first, to the others."""
    samples = {row.name: row.values for row in rows}
    named = [name for name in found.compare if name in samples] or list(samples)[:1]
    return list(differences(samples, named, unit_of(len(found.seeds))))


@dataclass(frozen=True)
class Winner:
    """The network to use.

    Attributes:
        stage: that trained or evaluated it; where none has yet, its search.
        row: its row; None where it is a search's best so far.
        search: that found it, None for one that nobody searched, and by gradient.
        record: of the search, None without.
    """

    stage: FoundStage
    row: Row | None = None
    search: FoundStage | None = None
    record: CandidateRecord | None = None

    @property
    def checkpoint(self) -> str:
        """File of its weights; "" as long as there is none."""
        files = [self.stage.file(f"{FINAL}.pth")]
        if self.search is not None and self.stage.kind != "train":
            files = [self.search.file(INHERITED_FILE)]
        return next((file for file in files if os.path.isfile(file)), "")

    @property
    def latency(self) -> LatencyRecord | None:
        """As measured, None where it was not."""
        return read_latency(os.path.dirname(self.checkpoint)) if self.checkpoint else None

    @property
    def command(self) -> str:
        """Shell command that runs it on images; "" as long as it has no weights."""
        if not self.checkpoint:
            return ""
        folder = shlex.quote(os.path.dirname(self.checkpoint))
        return f"detnas predict {folder} 'photos/*.jpg' --output pictures"


def winner_of(found: Found, rows: list[Row]) -> Winner | None:
    """The searched network of the first row that has one, a compared row before others.

    Of several seeds the one whose search gave it the highest fitness: test images do not choose.
    Before a network is trained, the best path of a search; without a search, the first network.
    """
    searched = [row for row in rows if row.origin == SEARCHED]
    compared = [row for row in searched if row.name in found.compare]
    searches = {stage.seed: stage for stage in reversed(found.of_kind("search"))}
    for row in (*compared, *searched):
        members = [_winner(stage, row, searches.get(stage.seed)) for stage in row.stages]
        return min(members, key=lambda winner: _fitness_key(winner.record))
    best = [Winner(s, None, s, record) for s in searches.values() if (record := best_record(s))]
    if best:
        return min(best, key=lambda winner: _fitness_key(winner.record))
    return Winner(rows[0].stages[0], rows[0]) if rows else None


def _winner(stage: FoundStage, row: Row, search: FoundStage | None) -> Winner:
    record = best_record(search) if search is not None else None
    if record is None or record.path != stage.architecture:
        return Winner(stage, row)
    return Winner(stage, row, search, record)


def _fitness_key(record: CandidateRecord | None) -> float:
    return math.inf if record is None or record.fitness is None else -record.fitness
