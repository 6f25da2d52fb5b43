"""Measured latency where the channels of neck and head are searched: a table for each number."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from detnas_d2.search_space.candidates import ConditionalTable
from detnas_d2.search_space.elastic_space import ElasticHitSpace
from detnas_d2.search_space.latency import LatencyTable
from detnas_d2.search_space.space import PathSpace


@dataclass(frozen=True, kw_only=True)
class ElasticLatency(ConditionalTable[float]):
    """Milliseconds of the detectors of an :class:`ElasticHitSpace`.

    Args:
        tables: of whole detectors, one for each number of channels.
        neck_channels: those numbers.
        space: name of the space.
        check: of all of them together, as :class:`LatencyTable` has it; None: not checked.
    """

    tables: tuple[LatencyTable, ...]
    gene: int
    neck_channels: tuple[int, ...]
    space: str
    check: dict[str, Any] | None = None

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.tables[0].input_size

    @property
    def about(self) -> str:
        """What it is of, in words."""
        channels = f"a table for each of {list(self.neck_channels)} channels of the neck"
        return f"{_with_check(self.tables[-1], self.check).about}; {channels}"

    def to_json(self) -> str:
        told = {
            "space": self.space,
            "neck_channels": self.neck_channels,
            "check": self.check,
            "tables": [json.loads(table.to_json()) for table in self.tables],
        }
        return json.dumps(told, indent=1, allow_nan=False)


Latency = LatencyTable | ElasticLatency
"""A table of measured milliseconds of the paths of a space."""


def latency_from_json(text: str, space: PathSpace) -> Latency:
    """The latency table of a space.

    Raises:
        ValueError: it is of another space, or has another shape.
    """
    if not isinstance(space, ElasticHitSpace):
        return LatencyTable.from_json(text, space)
    data: dict[str, Any] = json.loads(text)
    channels = tuple(data.get("neck_channels", ()))
    if channels != space.neck_channels:
        raise ValueError(
            f"latency table of {list(channels) or 'no'} channels of the neck, expected one for "
            f"each of {list(space.neck_channels)}"
        )
    tables = tuple(
        LatencyTable.from_json(json.dumps(table), space.at(number))
        for number, table in zip(channels, data["tables"], strict=True)
    )
    return ElasticLatency(
        tables=tables,
        gene=space.gene,
        neck_channels=channels,
        space=str(data["space"]),
        check=data.get("check"),
    )


def _with_check(table: LatencyTable, check: dict[str, Any] | None) -> LatencyTable:
    return replace(table, detector={**(table.detector or {}), "check": check})
