"""A search without networks, shared by the driver's tests and run as a program by one of them.

As a program: ``python toy_search.py DIRECTORY SECONDS`` searches or resumes in DIRECTORY, taking
SECONDS per candidate.
"""

from __future__ import annotations

import sys
import time

from detnas_d2.evaluation import Evaluation
from detnas_d2.evaluation.ranks import SingleProcess
from detnas_d2.search import (
    Constraint,
    Evolution,
    EvolutionSettings,
    History,
    Limits,
    open_history,
    run_search,
)
from detnas_d2.search_space import Cost, CostTable

LAYERS = 8
OPS = "abcd"
SETTINGS = EvolutionSettings.preset("paper", population=10, generations=4)
FINGERPRINT = {"seed": 5}
COSTS = CostTable(Cost(10, 100), (tuple(Cost(op, 7 * op + 1) for op in range(4)),) * LAYERS, (8, 8))


class ToySpace:
    """Paths are texts such as "abcdabcd"."""

    def path(self, source) -> str:
        return "".join(OPS[choice] for choice in source)


class ToyEvaluator:
    """Fitness with digits that do not survive rounding; counts and can interrupt its calls."""

    def __init__(self, stop_after=None, failures=None, seconds=0.0) -> None:
        self.calls: list[str] = []
        self.stop_after = stop_after
        self.failures = failures or {}  # path -> exception or fitness
        self.seconds = seconds

    def evaluate(self, path) -> Evaluation:
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(path)
        time.sleep(self.seconds)
        outcome = self.failures.get(path, fitness(path))
        if isinstance(outcome, Exception):
            raise outcome
        metrics = {"toy/first": float(OPS.index(path[0])), "toy/undefined": float("nan")}
        return Evaluation(outcome, metrics, {"infer": 0.25})


def fitness(path) -> float:
    """A smooth part and a rough one."""
    value = int.from_bytes(path.encode(), "big")
    return sum(map(OPS.index, path)) / 3 + (value * 2654435761 % 1000003) / 1000003


def limits(max_macs=230) -> Constraint:
    return Constraint(Limits(max_macs=max_macs), COSTS)


def searcher(**changes) -> Evolution:
    chosen = {"seed": 5, "feasible": limits(), **changes}
    return Evolution((4,) * LAYERS, chosen.pop("settings", SETTINGS), **chosen)


def search(history: History, evaluator=None, **changes):
    """`run_search` of the toy problem."""
    arguments = {
        "space": ToySpace(),
        "limits": limits(),
        "max_failures": 3,
        "ranks": SingleProcess(),
        **changes,
    }
    chosen = arguments.pop("searcher", None) or searcher()
    return run_search(chosen, evaluator or ToyEvaluator(), history, **arguments)


if __name__ == "__main__":
    opened = open_history(sys.argv[1], FINGERPRINT, resume=True, ranks=SingleProcess())
    search(opened, ToyEvaluator(seconds=float(sys.argv[2])))
