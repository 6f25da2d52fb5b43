"""Screening of the operations of one part (Hit-Detector section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detnas_d2.modeling.searchable_layers import RelaxedLayers
from detnas_d2.search.gradient.objective import scores


@dataclass(frozen=True)
class RemovalSchedule:
    """Number of operations left at an iteration: all until ``start``, ``keep`` from ``end`` on.

    In between, the number falls in equal steps of time.

    Raises:
        ValueError: values that make no schedule.
    """

    total: int
    keep: int
    start: int
    end: int

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= self.total:
            raise ValueError(f"cannot keep {self.keep} of {self.total} operations")
        if not 0 <= self.start <= self.end:
            raise ValueError(
                f"removal from iteration {self.start} to {self.end}: expected 0 <= start <= end"
            )

    def remaining(self, iteration: int) -> int:
        """Number of operations that iteration ``iteration`` trains with."""
        if iteration < self.start:
            return self.total
        removals = self.total - self.keep
        if iteration >= self.end:
            return self.keep
        elapsed = iteration - self.start + 1
        return self.total - min(removals, removals * elapsed // (self.end - self.start))


class Screening:
    """Ranks the operations of one relaxed part and removes the lowest, keeping the history.

    The score of an operation is its mean probability over the layers of the part.
    """

    def __init__(self, layers: RelaxedLayers, schedule: RemovalSchedule) -> None:
        self.layers, self.schedule = layers, schedule
        self.iterations: list[int] = []
        self.history: dict[str, list[float]] = {op: [] for op in layers.ops}
        self.removed: dict[str, int] = {}

    def record(self, iteration: int) -> None:
        """Notes the scores of the operations that are left."""
        self.iterations.append(iteration)
        for op, score in scores(self.layers).items():
            self.history[op].append(score)

    def remove(self, iteration: int) -> list[str]:
        """Removes what the schedule wants gone before ``iteration``; returns the names."""
        removed = []
        while len(self.layers.active) > self.schedule.remaining(iteration):
            current = scores(self.layers)
            # Of equals the last in the table goes: the order is fixed, so runs repeat.
            worst = min(reversed(current), key=current.__getitem__)
            self.layers.remove(worst)
            self.removed[worst] = iteration
            removed.append(worst)
        return removed

    @property
    def kept(self) -> list[str]:
        """The operations that are left, best first."""
        current = scores(self.layers)
        return sorted(current, key=lambda op: -current[op])

    def report(self) -> dict[str, Any]:
        """Plain values: what was kept and removed, and every operation's scores over time."""
        return {
            "part": self.layers.part,
            "kept": self.kept,
            "removed": [{"op": op, "iteration": i} for op, i in self.removed.items()],
            "iterations": list(self.iterations),
            "scores": {op: [round(s, 6) for s in values] for op, values in self.history.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "iterations": list(self.iterations),
            "history": {op: list(values) for op, values in self.history.items()},
            "removed": dict(self.removed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the history; which operations are left is in the model's own state."""
        if set(state["history"]) != set(self.layers.ops):
            raise ValueError("the screening state is of other operations")
        self.iterations = list(state["iterations"])
        self.history = {op: list(state["history"][op]) for op in self.layers.ops}
        self.removed = dict(state["removed"])
