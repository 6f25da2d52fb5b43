"""Fronts of several searches of one supernet, by their hypervolume: a strategy against another.

Each search trades the same objectives within the same limits, so all hypervolumes have one
reference point (:meth:`detnas_d2.search.objectives.Objectives.hypervolume`). They are compared
after every generation, so after as many evaluations, paired by the seeds of the pipelines.

The fitness of a front's members is what their search maximised, and too high by part of its noise,
the more so the more a search makes of it. Their scores on test images, where an evaluation of the
whole front has found them, are not; nor are those of hand-made networks beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from detnas_d2.engine.architectures import searched_space, space_costs
from detnas_d2.pipeline.definition import Pipeline
from detnas_d2.pipeline.differences import Difference, difference
from detnas_d2.pipeline.front_scores import tested_members
from detnas_d2.pipeline.manifest import GIVEN, origin_of
from detnas_d2.pipeline.report import by_seed, mean_and_deviation, network_cost, seed_of, unit_of
from detnas_d2.pipeline.stages import Stage
from detnas_d2.pipeline.state import DONE, DONE_FILE, read_json
from detnas_d2.pipeline.status import stage_state
from detnas_d2.pipeline.truth_source import holds_supernet
from detnas_d2.search.front_file import read_objectives
from detnas_d2.search.history import History
from detnas_d2.search.objectives import Objectives, hypervolume_curve
from detnas_d2.search_space import Cost
from detnas_d2.search_space.hit_space import HitSpace
from detnas_d2.utils.errors import InputError

Values = dict[int, list[float]]
"""Seed -> hypervolume of the run with it, as a list of one."""
FRONTS_FILE = "fronts.json"
"""In the output folder: the comparison."""
BY_HAND = "hand-made networks"
_OF_NETWORKS = ("macs", "params")
_METRICS = ("bbox/AP", "bbox/AP50", "classification/top1")


@dataclass(frozen=True)
class Hypervolumes:
    """Of every search, after as many evaluations or of what was tested.

    Attributes:
        where: e.g. "after 40 evaluations", "by bbox/AP on test images".
        values: name of a search, or :data:`BY_HAND` -> its hypervolumes.
        differences: of the first search to each of the others.
    """

    where: str
    values: dict[str, Values]
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class FrontComparison:
    """Searches of the same objectives, the first one against the others.

    Attributes:
        objectives: what they trade; "least" and "most" of each cost bound all hypervolumes.
        evaluations: numbers of candidates, rising.
        curve: hypervolumes by fitness, after as many.
        tested: those by scores on test images.
        missing: seeds whose searches are not all done.
    """

    searches: tuple[str, ...]
    objectives: Objectives
    evaluations: tuple[int, ...]
    curve: tuple[Hypervolumes, ...]
    tested: tuple[Hypervolumes, ...]
    missing: int = 0

    def table(self) -> list[list[str]]:
        """Rows of texts, the first one the head: a column for each search, for hand-made networks
        where they were tested, and for each difference.
        """
        first, *others = self.searches
        tested = (name for row in self.tested for name in row.values)
        names = list(dict.fromkeys([*self.searches, *tested]))
        lines = [["hypervolume", *names, *(f"{first} less {other}" for other in others)]]
        for row in (*self.curve, *self.tested):
            cells = [_mean(row.values.get(name, {})) for name in names]
            told = {found.other: _interval(found) for found in row.differences}
            lines.append([row.where, *cells, *(told.get(other, "") for other in others)])
        return lines

    def sentences(self) -> list[str]:
        """The differences at the end, in words."""
        last = [*self.curve[-1:], *self.tested]
        told = [str(found) for row in last for found in row.differences]
        return [*told, *([f"{self.missing} more seeds are not done yet"] * bool(self.missing))]

    def text(self) -> str:
        """The table in Markdown, and the sentences as a list."""
        head, *rows = self.table()
        lines = [head, ["---"] * len(head), *rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return "\n".join([table, "", *(f"- {sentence}" for sentence in self.sentences())])

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Any) -> FrontComparison:
        """Of the value that :meth:`as_dict` gave, read from JSON.

        Raises:
            InputError: it is another one.
        """
        try:
            return cls(
                searches=tuple(value["searches"]),
                objectives=Objectives(**{k: tuple(v) for k, v in value["objectives"].items()}),
                evaluations=tuple(value["evaluations"]),
                curve=tuple(map(_hypervolumes, value["curve"])),
                tested=tuple(map(_hypervolumes, value["tested"])),
                missing=int(value["missing"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"no comparison of fronts ({error!r})") from error


def _hypervolumes(value: Any) -> Hypervolumes:
    values = {
        name: {int(seed): list(found) for seed, found in of_search.items()}
        for name, of_search in value["values"].items()
    }
    told = (Difference(**{**d, "seeds": tuple(d["seeds"])}) for d in value["differences"])
    return Hypervolumes(value["where"], values, tuple(told))


def compare_fronts(pipelines: Sequence[Pipeline]) -> FrontComparison | None:
    """The fronts that the searches of a file found, one run for each seed; None unless two
    searches of the same objectives are done for a seed.

    Raises:
        InputError: a damaged file of a search, or two searches with other ranges of costs.
    """
    searches = _alike(pipelines)
    if len(searches) < 2:
        return None
    ready = [
        p for p in pipelines if all(stage_state(p, p.known_stage(n)) == DONE for n in searches)
    ]
    if not ready:
        return None
    objectives = read_objectives(ready[0].folder(searches[0]))
    folders = [pipeline.folder(name) for pipeline in ready for name in searches]
    # Latencies that every search has measured anew are no common ground.
    if any(read_objectives(folder) != objectives for folder in folders):
        return None
    seeds = [seed_of(p, p.known_stage(searches[0]), len(pipelines)) for p in ready]
    unit = unit_of(len(pipelines))
    curves = {
        name: [hypervolume_curve(History.read(p.folder(name)), objectives) for p in ready]
        for name in searches
    }
    counts = sorted(
        set.intersection(*(set(curve) for of_search in curves.values() for curve in of_search))
    )
    rows = []
    for count in counts:
        values = {
            name: by_seed(seeds, [curve[count] for curve in curves[name]]) for name in searches
        }
        rows.append(_row(f"after {count} evaluations", values, searches, unit))
    tested = _tested(ready, seeds, searches, objectives, unit)
    missing = len(pipelines) - len(ready)
    return FrontComparison(searches, objectives, tuple(counts), tuple(rows), tested, missing)


def _alike(pipelines: Sequence[Pipeline]) -> tuple[str, ...]:
    """Names of the searches with the objectives of the first one that has several."""
    found: dict[str, tuple[str, ...]] = {}
    for stage in pipelines[0].stages if pipelines else ():
        if stage.kind == "search":
            objectives = tuple(pipelines[0].begin_of(stage).SEARCH.OBJECTIVES)
            if len(objectives) > 1:
                found[stage.name] = objectives
    first = next(iter(found.values()), ())
    return tuple(name for name, objectives in found.items() if objectives == first)


def _row(where: str, values: dict[str, Values], searches: Sequence[str], unit: str) -> Hypervolumes:
    first, *others = (name for name in searches if name in values)
    told = f"hypervolume {where}"
    found = [difference(first, o, told, values[first], values[o], unit) for o in others]
    return Hypervolumes(where, values, tuple(found))


def _tested(
    pipelines: Sequence[Pipeline],
    seeds: Sequence[int],
    searches: Sequence[str],
    objectives: Objectives,
    unit: str,
) -> tuple[Hypervolumes, ...]:
    """Hypervolumes of scores on test images, in the first metric that all have."""
    points = [_points_of(pipeline, objectives) for pipeline in pipelines]
    names = [name for name in (*searches, BY_HAND) if all(name in found for found in points)]
    if not set(searches) <= set(names):
        return ()
    for metric in _METRICS:
        of_metric = [
            {
                name: [
                    (results[metric], *costs) for results, costs in found[name] if metric in results
                ]
                for name in names
            }
            for found in points
        ]
        if all(scored[name] for scored in of_metric for name in names):
            values = {
                name: by_seed(seeds, [objectives.hypervolume_of(s[name]) for s in of_metric])
                for name in names
            }
            return (_row(f"by {metric} on test images", values, searches, unit),)
    return ()


_Tested = list[tuple[dict[str, float], tuple[float, ...]]]
"""(defined results, costs) of networks."""


def _points_of(pipeline: Pipeline, objectives: Objectives) -> dict[str, _Tested]:
    """Search, or BY_HAND -> networks of one run that were tested."""
    found: dict[str, _Tested] = {}
    for stage in pipeline.stages:
        if stage_state(pipeline, stage) != DONE:
            continue
        folder = pipeline.folder(stage.name)
        if stage.whole:
            members = tested_members(folder, pipeline.folder(stage.path))
            found[stage.path] = [
                (_defined(member.results), objectives.costs_of(member.record)) for member in members
            ]
        elif _is_by_hand(pipeline, stage) and set(objectives.costs) <= set(_OF_NETWORKS):
            done = read_json(folder, DONE_FILE)
            if cost := _counted(pipeline, stage, done["path"]):
                costs = tuple(getattr(cost, name) for name in objectives.costs)
                found.setdefault(BY_HAND, []).append((_defined(done["results"]), costs))
    return found


def _counted(pipeline: Pipeline, stage: Stage, path: str) -> Cost | None:
    """Cost of a network as the first search counts those of its candidates; None where it counts
    layers that the network does not have.
    """
    cfg = pipeline.counted(stage)
    limits = pipeline.limits_for(cfg)
    searched, own = searched_space(limits), pipeline.space_of(stage, cfg)
    if not isinstance(searched, HitSpace):
        return network_cost(cfg, path, limits)
    if own != searched:
        return None
    found = own.path(path)
    return space_costs(limits, own, found.resolution).cost(found.choices)


def _is_by_hand(pipeline: Pipeline, stage: Stage) -> bool:
    """Whether a stage's network was chosen by a person: of one path, or of a row of TABLE."""
    if stage.kind not in ("train", "evaluate") or origin_of(pipeline, stage) != GIVEN:
        return False
    if stage.path:
        return True
    listed = (stage.row or stage.name) in pipeline.table
    return listed and not holds_supernet(pipeline.begin_of(stage))


def _defined(results: Any) -> dict[str, float]:
    return {key: value for key, value in results.items() if value is not None and value == value}


def _mean(values: Values) -> str:
    numbers = [value for of_seed in values.values() for value in of_seed]
    if not numbers:
        return ""
    mean, deviation = mean_and_deviation(numbers)
    return f"{mean:.2f} ± {deviation:.2f}" if len(numbers) > 1 else f"{mean:.2f}"


def _interval(found: Difference) -> str:
    if found.value is None:
        return ""
    if found.low is None:
        return f"{found.value:+.2f}"
    return f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
