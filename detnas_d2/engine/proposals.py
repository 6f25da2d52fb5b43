"""Space, limits and searcher of a search: which candidates it looks at."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

from detectron2.config import CfgNode
from detectron2.utils import comm

from detnas_d2.engine.architectures import searched_space, space_costs
from detnas_d2.search.build import SearcherSettings, limits_from_config, with_keys
from detnas_d2.search.constraints import Constraint, Limits, UnsatisfiableLimit
from detnas_d2.search.objectives import Objectives
from detnas_d2.search.searcher import GenerationSearcher
from detnas_d2.search_space import CostTable, LatencyTable, measure_latency
from detnas_d2.search_space.space import PathSpace, SearchSpace
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_text

logger = logging.getLogger("detnas_d2.search")


@dataclass(frozen=True)
class Proposals:
    """Candidates that a search may propose.

    Attributes:
        costs: of the paths of ``space``, at ``SEARCH.MAX_MACS_INPUT``.
        latency: the table that latency is limited by, or an objective; None before it is measured.
        latency_file: of that table; "" if latency is neither.
        measure: makes the table; takes minutes.
        max_failures: the search stops when more candidates have failed.
        output_dir: of the search.
        budgets: of the first cost of the objectives.
    """

    space: PathSpace
    costs: CostTable
    limits: Limits
    latency: LatencyTable | None
    latency_file: str
    measure: Callable[[], LatencyTable]
    searcher: SearcherSettings
    max_failures: int
    output_dir: str
    budgets: tuple[float, ...] = ()

    @classmethod
    def from_config(cls, cfg: CfgNode, space: PathSpace | None = None) -> Proposals:
        """Space, limits and searcher of ``cfg.SEARCH``.

        Args:
            space: that of ``cfg`` by default.

        Raises:
            InputError: a key is wrong, or the latency table cannot be read.
        """
        space = searched_space(cfg) if space is None else space
        named, limits = cfg.SEARCH.LATENCY_TABLE, limits_from_config(cfg)
        if named and not os.path.isfile(named):
            raise InputError(f"SEARCH.LATENCY_TABLE: {named!r} does not exist")
        file = named or os.path.join(cfg.OUTPUT_DIR, "latency.json")
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
        return cls(
            space=space,
            costs=space_costs(cfg, space),
            limits=limits,
            latency=read_latency(named, space) if named and needed else None,
            latency_file=file if needed else "",
            measure=partial(
                measure_latency,
                space,
                input_size=tuple(cfg.SEARCH.MAX_MACS_INPUT),
                device=cfg.MODEL.DEVICE,
                shuffle_method=cfg.MODEL.DETNAS.SHUFFLE_METHOD,
            ),
            searcher=searcher,
            max_failures=cfg.SEARCH.MAX_FAILURES,
            output_dir=cfg.OUTPUT_DIR,
            budgets=tuple(cfg.SEARCH.BUDGETS),
        )

    def measured(self) -> Proposals:
        """The same with the latency table if one is needed, measured once (collective)."""
        if self.latency is not None:
            logger.info("Latency by %s: %s", self.latency_file, self.latency.about)
        if self.latency is not None or not self.latency_file:
            return self
        if comm.is_main_process() and not os.path.exists(self.latency_file):
            logger.info("Measuring latency; kept in %s", self.latency_file)
            write_text(self.latency_file, self.measure().to_json())
        comm.synchronize()
        return replace(self, latency=read_latency(self.latency_file, self.space))

    @cached_property
    def constraint(self) -> Constraint:
        """The limits with their tables; without that of a latency which is not measured yet."""
        limits = self.limits
        if self.latency is None:
            limits = replace(limits, max_latency_ms=None)
        return Constraint(limits, self.costs, self.latency)

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
        return self.searcher.build(self.space.cardinalities, self.constraint)

    @property
    def latency_sha256(self) -> str:
        """Of the latency table, "" without one."""
        if self.latency is None:
            return ""
        return hashlib.sha256(self.latency.to_json().encode()).hexdigest()

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


def read_latency(file: str, space: PathSpace) -> LatencyTable:
    """The latency table of a space.

    Raises:
        InputError: the file holds none of this space.
    """
    try:
        with open(file, encoding="utf-8") as text:
            return LatencyTable.from_json(text.read(), space)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"SEARCH.LATENCY_TABLE: {file} is no table of this space ({error}); delete it, or name "
            "another"
        ) from error
