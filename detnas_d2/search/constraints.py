"""Limits on what a candidate may cost, checked in microseconds from additive tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detnas_d2.config.values import COSTS, FOOTPRINTS
from detnas_d2.search_space import Choices, LatencyTable
from detnas_d2.search_space.candidates import ConditionalTable, Costs, Table
from detnas_d2.utils.errors import InputError


class UnsatisfiableLimit(InputError):
    """A limit that not even the cheapest (or most expensive) path keeps."""


@dataclass(frozen=True)
class Limits:
    """Limits of what a path may cost; None: no limit. Bounds are inclusive.

    Attributes:
        max_macs, min_macs: multiply-adds at the input size of the cost table. The papers'
            "300M FLOPs" are multiply-adds of the backbone body at 224x224.
        max_params: parameters of the backbone body.
        max_latency_ms: milliseconds by the latency table.
    """

    max_macs: int | None = None
    max_params: int | None = None
    max_latency_ms: float | None = None
    min_macs: int | None = None

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive or None (no limit), got {value}")
        low, high = self.min_macs, self.max_macs
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_macs {self.min_macs} exceeds max_macs {self.max_macs}")

    def __str__(self) -> str:
        parts = [f"{k}={v}" for k, v in dataclasses.asdict(self).items() if v is not None]
        return ", ".join(parts) or "no limit"


class Constraint:
    """Limits together with the tables that decide them. Callable: ``constraint(choices)``.

    Of a search of resolutions the choices are genes, see
    :class:`detnas_d2.search_space.candidates.Candidates`; each resolution has its own costs.

    Args:
        limits: what is limited.
        costs: table of MACs and parameters; None: unknown, then it cannot be limited either.
        latency: table of milliseconds, or None likewise.
        footprints: "memory_bytes" and "file_bytes" -> table, where they are wanted.

    Raises:
        ValueError: a limit without the table it needs.
    """

    def __init__(
        self,
        limits: Limits,
        costs: Costs | None = None,
        latency: LatencyTable | ConditionalTable[float] | None = None,
        footprints: Mapping[str, Table] | None = None,
    ) -> None:
        self.limits = limits
        self.tables: dict[str, Table] = {}
        if costs is not None:
            self.tables |= {"macs": costs.macs, "params": costs.params}
        if latency is not None:
            self.tables["latency_ms"] = latency
        self.tables |= footprints or {}
        bounds = (
            ("macs", "max_macs", limits.max_macs, True),
            ("params", "max_params", limits.max_params, True),
            ("latency_ms", "max_latency_ms", limits.max_latency_ms, True),
            ("macs", "min_macs", limits.min_macs, False),
        )
        self._bounds = [
            (quantity, name, bound, is_max)
            for quantity, name, bound, is_max in bounds
            if bound is not None
        ]
        for quantity, name, _, _ in self._bounds:
            if quantity not in self.tables:
                raise ValueError(f"{name} is set, but there is no table of {quantity}")

    def __str__(self) -> str:
        return str(self.limits)

    def __call__(self, choices: Choices) -> bool:
        return self.feasible(choices)

    def feasible(self, choices: Choices) -> bool:
        """Does the path keep all limits?"""
        for quantity, _, bound, is_max in self._bounds:
            total = self.tables[quantity].total(choices)
            if total > bound if is_max else total < bound:
                return False
        return True

    def costs_of(self, choices: Choices) -> dict[str, int | float | None]:
        """``{"macs", "params", "latency_ms"}`` of the path, None without the table; and its
        footprints that have one.
        """
        return {
            name: self.tables[name].total(choices) if name in self.tables else None
            for name in COSTS
            if name in self.tables or name not in FOOTPRINTS
        }

    def selected_costs(self, names: Sequence[str], choices: Choices) -> tuple[int | float, ...]:
        """Those of :meth:`costs_of` that are named. Raises KeyError without a table."""
        return tuple(self.tables[name].total(choices) for name in names)

    def range_of(self, quantity: str) -> tuple[int | float, int | float]:
        """The least and the most that a path has of one of the tables' quantities, within the
        limits of that quantity.

        Raises:
            KeyError: there is no table of it.
        """
        table = self.tables[quantity]
        low, high = table.cheapest(), table.most_expensive()
        for limited, _, bound, is_max in self._bounds:
            if limited == quantity:
                low, high = (low, min(high, bound)) if is_max else (max(low, bound), high)
        return low, high

    def idle(self) -> list[str]:
        """A text for each limit that excludes no path of the space."""
        found = []
        for quantity, name, bound, is_max in self._bounds:
            table = self.tables[quantity]
            extreme = table.most_expensive() if is_max else table.cheapest()
            if extreme <= bound if is_max else extreme >= bound:
                found.append(
                    f"{name} {bound:g} excludes nothing: the paths of the space have "
                    f"{table.cheapest():g} to {table.most_expensive():g} {quantity}"
                )
        return found

    def check_satisfiable(self) -> None:
        """Compare each limit with the exact extreme of its quantity over the whole space.

        Limits that can be kept one by one but not together are left to the searcher, which fails
        to fill its first generation.

        Raises:
            UnsatisfiableLimit: naming the limit and the extreme.
        """
        for quantity, name, bound, is_max in self._bounds:
            table = self.tables[quantity]
            extreme = table.cheapest() if is_max else table.most_expensive()
            if extreme > bound if is_max else extreme < bound:
                raise UnsatisfiableLimit(
                    f"{name} is {bound}, but the {'cheapest' if is_max else 'most expensive'} path "
                    f"of the space has {extreme} {quantity}"
                )
