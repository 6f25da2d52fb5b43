"""Space, limits and searcher of a search: which candidates it looks at."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise

from detectron2.config import CfgNode
from detectron2.utils import comm

from detnas_d2.config.resolutions import resolutions_of
from detnas_d2.config.values import FOOTPRINTS
from detnas_d2.engine.architectures import region_size, searched_space, space_costs
from detnas_d2.search.build import SearcherSettings, limits_from_config, with_keys
from detnas_d2.search.constraints import Constraint, Limits, UnsatisfiableLimit
from detnas_d2.search.objectives import Objectives
from detnas_d2.search.searcher import GenerationSearcher
from detnas_d2.search_space import LatencyTable, measure_latency
from detnas_d2.search_space.candidates import (
    Candidates,
    ConditionalCosts,
    ConditionalTable,
    Costs,
    Table,
)
from detnas_d2.search_space.elastic_latency import Latency, latency_from_json
from detnas_d2.search_space.elastic_space import ElasticHitSpace
from detnas_d2.search_space.footprint import Footprints, footprints
from detnas_d2.search_space.space import Path, PathSpace, SearchSpace
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_text

logger = logging.getLogger("detnas_d2.search")

_PLACE = "{resolution}"


@dataclass(frozen=True)
class Proposals:
    """Candidates that a search may propose.

    Attributes:
        candidates: paths, and resolutions if they are searched.
        tables: costs of the paths at ``SEARCH.MAX_MACS_INPUT``; one for each resolution, if they
            are searched.
        latencies: the tables, as many, that latency is limited by, or an objective; none before
            they are measured.
        latency_files: of those tables; none if latency is neither.
        measure: makes the table of an image size; takes minutes.
        footprints: memory and file size of the paths, as many tables; none unless an objective.
        max_failures: the search stops when more candidates have failed.
        output_dir: of the search.
        budgets: of the first cost of the objectives.
    """

    candidates: Candidates
    tables: tuple[Costs, ...]
    limits: Limits
    latencies: tuple[Latency, ...]
    latency_files: tuple[str, ...]
    measure: Callable[..., LatencyTable]
    searcher: SearcherSettings
    max_failures: int
    output_dir: str
    budgets: tuple[float, ...] = ()
    footprints: tuple[Footprints, ...] = ()

    @classmethod
    def from_config(cls, cfg: CfgNode, space: PathSpace | None = None) -> Proposals:
        """Space, limits and searcher of ``cfg.SEARCH``.

        Args:
            space: that of ``cfg`` by default.

        Raises:
            InputError: a key is wrong, or the latency table cannot be read.
        """
        space = searched_space(cfg) if space is None else space
        resolutions, limits = resolutions_of(cfg), limits_from_config(cfg)
        named, files = cfg.SEARCH.LATENCY_TABLE, latency_files(cfg, resolutions)
        searcher = SearcherSettings.from_config(cfg)
        if cfg.SEARCH.BUDGETS and len(searcher.objectives) == 1:
            raise InputError(
                f"SEARCH.BUDGETS {list(cfg.SEARCH.BUDGETS)}: SEARCH.OBJECTIVES has no cost that "
                "they are of; expected one, as in ['fitness', 'macs'], or a limit instead"
            )
        limited = limits.max_latency_ms is not None
        needed = limited or "latency_ms" in searcher.objectives
        if needed and not named and not isinstance(space, SearchSpace):
            key = "SEARCH.MAX_LATENCY_MS" if limited else "SEARCH.OBJECTIVES"
            raise InputError(
                f"{key}: a search measures spaces of DetNAS only; make a table of space "
                f"{space.name!r} with detnas latency --table and name it in SEARCH.LATENCY_TABLE"
            )
        sizes = resolutions or (None,)
        tables = tuple(space_costs(cfg, space, size) for size in sizes)
        return cls(
            candidates=Candidates(space, resolutions),
            tables=tables,
            limits=limits,
            latencies=_latencies(files, space) if named and needed else (),
            latency_files=files if needed else (),
            measure=partial(
                measure_latency,
                space,
                device=cfg.MODEL.DEVICE,
                shuffle_method=cfg.MODEL.DETNAS.SHUFFLE_METHOD,
            ),
            searcher=searcher,
            max_failures=cfg.SEARCH.MAX_FAILURES,
            output_dir=cfg.OUTPUT_DIR,
            budgets=tuple(cfg.SEARCH.BUDGETS),
            footprints=(
                _footprints(cfg, space, tables)
                if not set(FOOTPRINTS).isdisjoint(searcher.objectives)
                else ()
            ),
        )

    @property
    def space(self) -> PathSpace:
        """The space of the paths."""
        return self.candidates.space

    @property
    def costs(self) -> Costs:
        """Costs of the paths, if no resolutions are searched."""
        return self.costs_at(None)

    def costs_at(self, resolution: int | None) -> Costs:
        """Costs of the paths at one of the resolutions; None: none are searched."""
        return self.tables[(self.candidates.resolutions or (None,)).index(resolution)]

    def measured(self) -> Proposals:
        """The same with the latency tables if they are needed, measured once (collective)."""
        for file, table in zip(self.latency_files, self.latencies, strict=False):
            logger.info("Latency by %s: %s", file, table.about)
        if self.latencies or not self.latency_files:
            return self
        for file, costs in zip(self.latency_files, self.tables, strict=True):
            if comm.is_main_process() and not os.path.exists(file):
                logger.info("Measuring latency; kept in %s", file)
                write_text(file, self.measure(input_size=costs.input_size).to_json())
        comm.synchronize()
        return replace(self, latencies=_latencies(self.latency_files, self.space))

    @cached_property
    def constraint(self) -> Constraint:
        """The limits with their tables; without that of a latency which is not measured yet."""
        limits = self.limits
        if not self.latencies:
            limits = replace(limits, max_latency_ms=None)
        if self.candidates.resolutions:
            latency = ConditionalTable[float](self.latencies) if self.latencies else None
            costs = ConditionalCosts(self.tables)
            return Constraint(limits, costs, latency, self._footprint_tables())
        own = next(iter(self.latencies), None)
        return Constraint(limits, self.tables[0], own, self._footprint_tables())

    def _footprint_tables(self) -> dict[str, Table]:
        if not self.footprints:
            return {}
        memory = tuple(each.memory for each in self.footprints)
        files = tuple(each.file for each in self.footprints)
        if not self.candidates.resolutions:
            return {"memory_bytes": memory[0], "file_bytes": files[0]}
        return {"memory_bytes": ConditionalTable(memory), "file_bytes": ConditionalTable(files)}

    def random_path(self, rng: random.Random) -> Path | None:
        """A path drawn uniformly from those within the limits; None: ``attempts`` draws, of the
        searcher, have found none.
        """
        draws = (self.candidates.random_path(rng) for _ in range(self.searcher.evolution.attempts))
        kept = (path for path in draws if self.constraint(self.candidates.genes(path)))
        return next(kept, None)

    @cached_property
    def objectives(self) -> Objectives | None:
        """Those of a search that has several, once its latency is measured; else None.

        Raises:
            InputError: all paths cost the same, or more than a budget.
        """
        costs, constraint = self.searcher.objectives[1:], self.constraint
        if not costs or not all(cost in constraint.tables for cost in costs):
            return None
        return Objectives.within(costs, constraint, self.budgets)

    def build_searcher(self) -> GenerationSearcher:
        """A searcher at its first generation; see :meth:`SearcherSettings.build`."""
        return self.searcher.build(self.candidates.cardinalities, self.constraint)

    @property
    def latency_sha256(self) -> str:
        """Of the latency tables, "" without one."""
        if not self.latencies:
            return ""
        texts = "".join(table.to_json() for table in self.latencies)
        return hashlib.sha256(texts.encode()).hexdigest()

    def check(self) -> None:
        """Raises InputError if no path, or too few for a generation, satisfy the limits."""
        self.check_limits()
        self.build_searcher()

    def check_limits(self) -> None:
        """Raises InputError, naming the key, if no path satisfies one of the limits
        (UnsatisfiableLimit), or one of the objectives or budgets makes no sense.
        """
        try:
            self.constraint.check_satisfiable()
        except UnsatisfiableLimit as error:
            raise UnsatisfiableLimit(with_keys(error)) from None
        _ = self.objectives

    def warnings(self) -> list[str]:
        """A text for each limit that excludes nothing."""
        return [with_keys(text) for text in self.constraint.idle()]


def _footprints(cfg: CfgNode, space: PathSpace, tables: Sequence[Costs]) -> tuple[Footprints, ...]:
    """At the image sizes of the tables of costs."""
    if isinstance(space, ElasticHitSpace):
        raise InputError(
            f"SEARCH.OBJECTIVES: {' and '.join(FOOTPRINTS)} are of the searched layers, which are "
            "compared at one number of channels, but MODEL.HIT.NECK_CHANNELS are searched: "
            "expected 'macs', 'params' or 'latency_ms'"
        )
    regions, region = cfg.HIT_SEARCH.COST_PROPOSALS, region_size(cfg)
    return tuple(
        footprints(space, table.input_size, regions=regions, region=region) for table in tables
    )


def latency_files(cfg: CfgNode, resolutions: Sequence[int]) -> tuple[str, ...]:
    """The file of the latency table, or those of the resolutions; they exist if they are named."""
    named = cfg.SEARCH.LATENCY_TABLE
    files: tuple[str, ...]
    if not resolutions:
        files = (named or os.path.join(cfg.OUTPUT_DIR, "latency.json"),)
    elif named and _PLACE not in named:
        raise InputError(
            f"SEARCH.LATENCY_TABLE: {named!r} is one table; of SEARCH.RESOLUTIONS "
            f"{list(resolutions)} each has its own: expected a name with {_PLACE} in it, e.g. "
            f"latency_{_PLACE}.json"
        )
    else:
        pattern = named or os.path.join(cfg.OUTPUT_DIR, f"latency_{_PLACE}.json")
        files = tuple(pattern.replace(_PLACE, str(size)) for size in resolutions)
    missing = [file for file in files if named and not os.path.isfile(file)]
    if missing:
        raise InputError(f"SEARCH.LATENCY_TABLE: {missing[0]!r} does not exist")
    return files


def _latencies(files: Sequence[str], space: PathSpace) -> tuple[Latency, ...]:
    """The latency tables of a space, for larger and larger images."""
    tables = tuple(read_latency(file, space) for file in files)
    areas = [math.prod(table.input_size) for table in tables]
    for (file, low), (_, high) in pairwise(zip(files, areas, strict=True)):
        if low >= high:
            raise InputError(
                f"SEARCH.LATENCY_TABLE: {file} was measured on images as large as those of the "
                "next of SEARCH.RESOLUTIONS, or larger; measure each at its own size"
            )
    return tables


def read_latency(file: str, space: PathSpace) -> Latency:
    """The latency table of a space.

    Raises:
        InputError: the file holds none of this space.
    """
    try:
        with open(file, encoding="utf-8") as text:
            return latency_from_json(text.read(), space)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"SEARCH.LATENCY_TABLE: {file} is no table of this space ({error}); delete it, or name "
            "another"
        ) from error
