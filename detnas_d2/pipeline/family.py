"""The family of a front: members as they left the search, fine-tuned and trained from other
weights, in one table with the networks of the pipeline that nobody searched.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from detectron2.config import CfgNode

from detnas_d2.engine.architectures import genotype_of, searched_space
from detnas_d2.evaluation import CandidateRecord
from detnas_d2.pipeline.definition import Pipeline
from detnas_d2.pipeline.latency_record import read_latency
from detnas_d2.pipeline.manifest import GIVEN, RANDOM, SEARCHED, origin_of
from detnas_d2.pipeline.report import mean_and_deviation, network_cost
from detnas_d2.pipeline.state import DONE, DONE_FILE, read_json
from detnas_d2.pipeline.status import stage_state
from detnas_d2.pipeline.tested_images import ap_interval
from detnas_d2.search.front_file import Front, has_front, read_front
from detnas_d2.search.history import History
from detnas_d2.search_space import Cost
from detnas_d2.search_space.hit_space import GenotypeSpace
from detnas_d2.search_space.space import PathSpace

INHERITED, TUNED, TRAINED = "inherited", "fine-tuned", "trained"
TREATMENTS = (INHERITED, TUNED, TRAINED)
"""Of a network: evaluated with the supernet's weights, trained on from them, or from others; or
made by others and evaluated as it is, which is "trained" too.
"""
_METRICS = ("bbox/AP", "bbox/AP50", "classification/top1")
_BY_HAND = {GIVEN: ", by hand"}


@dataclass(frozen=True)
class TestedNetwork:
    """A finished stage with the scores of a network.

    Attributes:
        origin: of its architecture, see :mod:`detnas_d2.pipeline.manifest`.
        path: text of it.
    """

    __test__ = False  # no class of tests

    name: str
    kind: str
    row: str
    origin: str
    folder: str
    cfg: CfgNode
    path: str
    results: dict[str, Any]

    def architecture(self, space: PathSpace) -> tuple[str, ...]:
        """What it shares with networks of the same architecture that were treated otherwise.

        Args:
            space: of a search beside it. What a genotype of Hit-Detectors leaves open is told by
                the row alone, and so is what has neither path nor genotype.
        """
        told = self.path
        if isinstance(space, GenotypeSpace) and self.origin == GIVEN:
            parts = space.split(space.first_path())
            told = told if set(parts) <= set(genotype_of(self.cfg).parts) else ""
        model = self.cfg.MODEL
        return model.DETNAS.SPACE, model.HIT.NETWORK, told or self.row


@dataclass(frozen=True)
class FamilyCell:
    """Scores of an architecture that was treated in one way.

    Attributes:
        interval: of one network's, over the test images; None where it is not known.
    """

    values: tuple[float, ...]
    interval: tuple[float, float] | None = None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    def __str__(self) -> str:
        if len(self.values) > 1:
            mean, deviation = mean_and_deviation(self.values)
            return f"{mean:.2f} ± {deviation:.2f} ({len(self.values)} nets)"
        if self.interval is None:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} ({self.interval[0]:.2f} to {self.interval[1]:.2f})"


@dataclass(frozen=True)
class FamilyLine:
    """An architecture.

    Attributes:
        number: of the member, None of a network that is none.
        fitness: of the member; ``fitness_interval`` over the images of the search, where known.
        milliseconds: latency, measured or else by the table of the search; None without.
        cells: treatment -> scores.
    """

    name: str
    origin: str
    number: int | None
    cost: Cost
    fitness: float | None
    milliseconds: float | None
    fitness_interval: tuple[float, float] | None = None
    cells: dict[str, FamilyCell] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """Members of a front, cheapest first, then the networks beside them.

    Attributes:
        metric: of the cells.
        size: of the whole front.
    """

    metric: str
    size: int
    lines: tuple[FamilyLine, ...]

    @property
    def treatments(self) -> list[str]:
        return [name for name in TREATMENTS if any(name in line.cells for line in self.lines)]

    def text(self) -> str:
        """The table in Markdown."""
        timed = any(line.milliseconds is not None for line in self.lines)
        head = ["network", "MACs (M)", "params (M)", *["ms"] * timed, "fitness", *self.treatments]
        body = [head, ["---"] * len(head)]
        for line in self.lines:
            cells = [line.name, f"{line.cost.macs / 1e6:.1f}", f"{line.cost.params / 1e6:.3f}"]
            if timed:
                cells.append("" if line.milliseconds is None else f"{line.milliseconds:.2f}")
            fitness = () if line.fitness is None else (line.fitness,)
            cells.append(str(FamilyCell(fitness, line.fitness_interval)) if fitness else "")
            cells += [str(line.cells.get(name, "")) for name in self.treatments]
            body.append(cells)
        return "\n".join("| " + " | ".join(cells) + " |" for cells in body)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def family_of(
    search_cfg: CfgNode,
    folder: str,
    records: Iterable[CandidateRecord],
    networks: Sequence[TestedNetwork],
) -> Family | None:
    """The family of a search; None unless two of its members were tested.

    Args:
        search_cfg, folder, records: of the search.
        networks: tested ones of the same run.

    Raises:
        InputError: a damaged ``front.yaml``.
    """
    front = read_front(folder, records)
    numbers = {record.path: number for number, record in enumerate(front.members, start=1)}
    scored = (set(network.results).intersection(_METRICS) for network in networks)
    known = set.intersection(*scored) if networks else set()
    metric = next((name for name in _METRICS if name in known), "")
    groups: dict[tuple[str, ...], list[TestedNetwork]] = {}
    space = searched_space(search_cfg)
    for network in networks if metric else ():
        if network.origin == SEARCHED and network.path in numbers:
            groups.setdefault((network.path,), []).append(network)
        elif network.origin in (RANDOM, GIVEN):
            groups.setdefault(network.architecture(space), []).append(network)
    lines = []
    for key, group in groups.items():
        number = numbers[group[0].path] if len(key) == 1 else None
        lines.append(_line(front, number, group, search_cfg, folder, metric))
    if len([line for line in lines if line.number is not None]) < 2:
        return None
    lines.sort(key=lambda line: (line.number is None, line.number or 0, line.cost.macs))
    return Family(metric, len(front.members), tuple(lines))


def _line(
    front: Front,
    number: int | None,
    group: Sequence[TestedNetwork],
    search_cfg: CfgNode,
    folder: str,
    metric: str,
) -> FamilyLine:
    cells = {}
    for treatment in TREATMENTS:
        treated = [n for n in group if treatment_of(n, search_cfg, folder) == treatment]
        if treated:
            cells[treatment] = _cell(treated, metric)
    first = group[0]
    record = None if number is None else front.members[number - 1]
    name = first.name + _BY_HAND.get(first.origin, "")
    if record is not None:
        name = f"member {number} of {len(front.members)}"
        name += ", recommended" if number in front.recommended else ""
    places = [n.folder for n in group]
    if record is not None and record.path == front.best.path:
        places.append(folder)  # its best_inherited.yaml
    records = [told for place in places if (told := read_latency(place)) is not None]
    milliseconds = None if record is None else record.latency_ms
    if records:
        milliseconds = records[0].milliseconds
    cost = network_cost(first.cfg, first.path, search_cfg)
    fitness = None if record is None else record.fitness
    interval = None if number is None else front.intervals.get(number)
    return FamilyLine(name, first.origin, number, cost, fitness, milliseconds, interval, cells)


def _cell(treated: Sequence[TestedNetwork], metric: str) -> FamilyCell:
    values = tuple(float(network.results[metric]) for network in treated)
    interval = None
    if len(treated) == 1 and metric == "bbox/AP":
        interval = ap_interval(treated[0].cfg.clone(), treated[0].folder, values[0])
    return FamilyCell(values, interval)


def treatment_of(network: TestedNetwork, search_cfg: CfgNode, folder: str) -> str:
    """One of TREATMENTS, by the weights that the network started from.

    Args:
        search_cfg, folder: of the search that found the members.
    """
    if network.kind == "evaluate" and network.origin != GIVEN:
        return INHERITED
    weights = os.path.abspath(network.cfg.MODEL.WEIGHTS or os.curdir)
    supernet = os.path.abspath(search_cfg.MODEL.WEIGHTS or os.sep)
    # Files of a run that was moved or copied since name the places of then.
    places = [os.path.abspath(place) + os.sep for place in (folder, search_cfg.OUTPUT_DIR)]
    if weights.startswith(tuple(places)) or weights == supernet:
        return INHERITED if network.kind == "evaluate" else TUNED
    return TRAINED


def families(pipeline: Pipeline) -> Iterator[tuple[str, Family]]:
    """(name of the search, family) of each search with a front, of the networks of TABLE."""
    rows = [stage for row in pipeline.table for stage in pipeline.stages_of(row)]
    networks = []
    for stage in rows:
        folder = pipeline.folder(stage.name)
        done = read_json(folder, DONE_FILE)
        cfg = pipeline.counted(stage)
        networks.append(
            TestedNetwork(
                stage.name,
                stage.kind,
                stage.row or stage.name,
                origin_of(pipeline, stage),
                folder,
                cfg,
                str(done.get("path", "")),
                done.get("results", {}),
            )
        )
    for search in pipeline.stages:
        folder = pipeline.folder(search.name)
        found = search.kind == "search" and has_front(folder)
        if found and stage_state(pipeline, search) == DONE:
            records = History.read(folder)
            family = family_of(pipeline.counted(search), folder, records, networks)
            if family is not None:
                yield search.name, family


def titled_families(pipelines: Iterable[Pipeline]) -> dict[str, Family]:
    """Title -> family of every front whose members stand in TABLE."""
    found = {}
    for pipeline in pipelines:
        for name, family in families(pipeline):
            seed = "" if pipeline.seed is None else f", seed {pipeline.seed}"
            title = (
                f"The front of {name}{seed}: {family.metric} on test images, fitness on those of "
                "the search (95 % intervals over images)"
            )
            found[title] = family
    return found
