"""What a screening wrote: the scores of its operations over time, read again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from detnas_d2.config.reading import read_yaml
from detnas_d2.utils.errors import InputError


@dataclass(frozen=True)
class ScreeningRecord:
    """The report of a :class:`Screening`.

    Attributes:
        kept: the operations that were left, best first.
        removed: the others, each with the iteration at which it went.
        iterations: of the scores. An operation's end where it was removed.
        scores: operation -> mean probability over the layers, at each of the iterations.
    """

    part: str
    kept: tuple[str, ...]
    removed: tuple[tuple[str, int], ...]
    iterations: tuple[int, ...]
    scores: dict[str, tuple[float, ...]]


def read_screening(file: str) -> ScreeningRecord:
    """Reads ``screening.yaml``.

    Raises:
        InputError: it cannot be read, or naming file, line and key of what is not as expected.
    """
    tree = read_yaml(file)
    values = tree.data if isinstance(tree.data, dict) else {}

    def of(key: str, fits: Callable[[Any], bool], expected: str) -> Any:
        if key not in values:
            raise InputError(f"{file}: {key} is missing, expected {expected}")
        if not fits(values[key]):
            text = repr(values[key])
            shown = text if len(text) <= 60 else f"{text[:60]}..."
            raise InputError(f"{tree.place(key, file)}: {key} is {shown}, expected {expected}")
        return values[key]

    part = of("part", _is_name, "the name of the part")
    iterations = of("iterations", _all(_is_whole), "a list of whole numbers")
    most = len(iterations)
    scores = of(
        "scores",
        lambda value: (
            _maps(value, lambda row: row == [] or _all(_is_number)(row))
            and all(len(row) <= most for row in value.values())
        ),
        f"operations, each with a list of at most {most} numbers, one for an iteration",
    )
    kept = of("kept", _all(lambda op: op in scores), "a list of operations that have scores")
    removed = of(
        "removed",
        lambda value: value == [] or _all(_is_removal)(value),
        "a list of {op: NAME, iteration: NUMBER}",
    )
    return ScreeningRecord(
        part,
        tuple(kept),
        tuple((entry["op"], entry["iteration"]) for entry in removed),
        tuple(iterations),
        {op: tuple(map(float, row)) for op, row in scores.items()},
    )


def _all(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a value is a list of such items, one at least."""
    return lambda value: isinstance(value, list) and bool(value) and all(map(fits, value))


def _maps(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(fits, value.values()))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_removal(value: Any) -> bool:
    return (
        isinstance(value, dict) and _is_name(value.get("op")) and _is_whole(value.get("iteration"))
    )
