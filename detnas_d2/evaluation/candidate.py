"""Results of an evaluator for a path, and the record that the history keeps of them.

An evaluator is any object with ``evaluate(path) -> Evaluation``. One that can do better by seeing
several candidates at once also offers ``evaluate_many(paths)``; see :class:`ManyEvaluator`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from detnas_d2.config.values import FOOTPRINTS
from detnas_d2.search_space import Choices
from detnas_d2.search_space.space import resolution_of


@dataclass(frozen=True)
class Evaluation:
    """The score of one candidate.

    Attributes:
        fitness: what the search maximises, at full precision (never rounded: ties decide parents).
        metrics: everything the evaluator reported, e.g. ``{"bbox/AP": 31.4, "bbox/AP50": 50.2}``.
        seconds: wall-clock seconds per stage, e.g. ``{"recalibrate": 41.0, "infer": 63.2}``.
    """

    fitness: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


class Evaluator(Protocol):
    """Scores one candidate; called by every rank with the same path (it may communicate).

    Only the value returned on rank 0 counts. A RuntimeError, MemoryError or FloatingPointError,
    and a fitness that is not finite, mean that this candidate failed; any other exception ends
    the search.
    """

    def evaluate(self, path: Any) -> Evaluation: ...


class ManyEvaluator(Protocol):
    """Scores candidates together. Yields every path once, in the same order on every rank.

    A failed candidate is yielded with ``CandidateFailed.because(exception)``. An exception raised
    by the iterator itself ends the search: it is for failures that are not about one candidate.
    """

    def evaluate_many(
        self, paths: Sequence[Any]
    ) -> Iterator[tuple[Any, Evaluation | Exception]]: ...


@dataclass(frozen=True)
class CandidateRecord:
    """One evaluated candidate: a line of ``history.jsonl``.

    Two records are equal when they say the same about the candidate; when it was evaluated, how
    long that took and in which order the results came in are not compared.

    Attributes:
        index: number of the record in the history, from 0 (order of completion).
        generation, position: place in the search; generations count from 1, positions from 0.
        origin: how the searcher made it: "random", "mutation", "crossover", "predicted" or
            "enumeration".
        path: canonical text of the path; choices: the same as op indices, and last the place of
            its resolution among those of the search, if they are searched.
        fitness: None if the evaluation failed; ``error`` then says why.
        metrics: None stands for undefined (NaN), e.g. AP of an area range without objects.
        macs, params: multiply-adds and parameters by the search's cost table, None without one.
        latency_ms: milliseconds by the latency table, None without one.
        seconds: wall-clock seconds per stage; finished: when, ISO 8601 in UTC.
        memory_bytes, file_bytes: of a search that minimises them, else None, and not written.
    """

    index: int = field(compare=False)
    generation: int
    position: int
    origin: str
    path: str
    choices: Choices
    fitness: float | None
    metrics: Mapping[str, float | None]
    macs: int | None
    params: int | None
    latency_ms: float | None
    error: str | None
    seconds: Mapping[str, float] = field(compare=False)
    finished: str = field(compare=False)
    memory_bytes: int | None = None
    file_bytes: int | None = None

    @property
    def rank_key(self) -> tuple[float, int, int]:
        """Sort key of candidates with a fitness: the fittest first, ties in order of proposal."""
        assert self.fitness is not None
        return -self.fitness, self.generation, self.position

    @property
    def resolution(self) -> int | None:
        """Of the path, see :class:`detnas_d2.search_space.Path`."""
        return resolution_of(self.path)[1]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, in the order of the fields, ready for ``json.dumps(allow_nan=False)``."""
        told = {k: v for k, v in _shallow(self).items() if v is not None or k not in FOOTPRINTS}
        return {**told, "choices": list(self.choices)}

    def identity(self) -> dict[str, Any]:
        """`as_dict` without what two equal searches may differ in (timings, completion order)."""
        compared = {f.name for f in dataclasses.fields(self) if f.compare}
        return {key: value for key, value in self.as_dict().items() if key in compared}

    @classmethod
    def from_dict(cls, data: Any) -> CandidateRecord:
        """Inverse of `as_dict`. Raises ValueError naming the key that is wrong."""
        if not isinstance(data, dict):
            raise ValueError(f"expected an object, got {type(data).__name__}")
        data = {**dict.fromkeys(FOOTPRINTS), **data}
        names = {f.name for f in dataclasses.fields(cls)}
        if set(data) != names:
            missing, unknown = sorted(names - set(data)), sorted(set(data) - names)
            raise ValueError(f"missing keys {missing}, unknown keys {unknown}")
        for key, accepts in _ACCEPTS.items():
            if not accepts(data[key]):
                raise ValueError(f"key {key!r} has the unexpected value {data[key]!r}")
        if (data["fitness"] is None) != (data["error"] is not None):
            raise ValueError("exactly one of 'fitness' and 'error' must be null")
        return cls(**{**data, "choices": tuple(data["choices"])})


def finite_or_none(values: Mapping[str, float]) -> dict[str, float | None]:
    """Copy with plain floats; values that JSON cannot hold (NaN, infinities) become None."""
    floats = {key: float(value) for key, value in values.items()}
    return {key: value if math.isfinite(value) else None for key, value in floats.items()}


def _shallow(record: CandidateRecord) -> dict[str, Any]:
    values = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    return {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _all(values: Iterable[Any], accepts: Any) -> bool:
    return all(accepts(value) for value in values)


_ACCEPTS: dict[str, Callable[[Any], bool]] = {
    "index": _is_int,
    "generation": lambda v: _is_int(v) and v >= 1,
    "position": _is_int,
    "origin": lambda v: isinstance(v, str),
    "path": lambda v: isinstance(v, str),
    "choices": lambda v: isinstance(v, list) and len(v) > 0 and _all(v, _is_int),
    "fitness": lambda v: v is None or _is_number(v),
    "metrics": lambda v: (
        isinstance(v, dict) and _all(v.values(), lambda x: x is None or _is_number(x))
    ),
    "macs": lambda v: v is None or _is_int(v),
    "params": lambda v: v is None or _is_int(v),
    "latency_ms": lambda v: v is None or _is_number(v),
    "error": lambda v: v is None or isinstance(v, str),
    "seconds": lambda v: isinstance(v, dict) and _all(v.values(), _is_number),
    "finished": lambda v: isinstance(v, str),
    **dict.fromkeys(FOOTPRINTS, lambda v: v is None or _is_int(v)),
}
