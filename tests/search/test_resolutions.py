"""Searches of paths with a resolution, without networks: one gene more for every strategy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detnas_d2.config.tools import load_config
from detnas_d2.engine.proposals import Proposals
from detnas_d2.evaluation import Evaluation
from detnas_d2.evaluation.ranks import SingleProcess
from detnas_d2.search import History, open_history, run_search
from detnas_d2.search.diagnostics import choice_frequencies
from detnas_d2.search_space import SPACES, build_cost_table

TINY = SPACES["detnas_tiny"]
SIZES = (96, 128, 144)
LARGEST = build_cost_table(TINY, (144, 144)).macs
LIMIT = (LARGEST.cheapest() + LARGEST.most_expensive()) // 2
STRATEGIES = {
    "evolution": {},
    "random": {"STRATEGY": "random"},
    "regularized": {"STRATEGY": "regularized"},
    "predictor": {"STRATEGY": "predictor"},
    "nsga2": {"OBJECTIVES": ["fitness", "macs"]},
}


def proposals(**search: Any) -> Proposals:
    keys = {"RESOLUTIONS": list(SIZES), "POPULATION": 8, "GENERATIONS": 5, "MAX_MACS": LIMIT}
    keys |= {"MAX_MACS_INPUT": [128, 128], "PARENTS": 4, **search}
    opts = ["MODEL.DETNAS.SPACE", "detnas_tiny", "INPUT.MIN_SIZE_TEST", 128]
    for key, value in keys.items():
        opts += [f"SEARCH.{key}", value]
    return Proposals.from_config(load_config("", opts))


class Evaluator:
    """Larger images are better, and other operations at each resolution."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.seen: list[Any] = []
        self.stop_after = stop_after

    def evaluate(self, path: Any) -> Evaluation:
        if len(self.seen) == self.stop_after:
            raise KeyboardInterrupt
        self.seen.append(path)
        liked = SIZES.index(path.resolution)
        return Evaluation(path.resolution / 10 + sum(choice == liked for choice in path))


def run(plan: Proposals, history: History, evaluator: Evaluator | None = None) -> Any:
    return run_search(
        plan.build_searcher(),
        evaluator or Evaluator(),
        history,
        space=plan.candidates,
        limits=plan.constraint,
        max_failures=0,
        ranks=SingleProcess(),
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resolutions_are_proposed_within_limits_and_resumed(strategy: str, tmp_path: Path) -> None:
    plan, whole = proposals(**STRATEGIES[strategy]), History.in_memory()
    run(plan, whole)
    assert len(whole) == 40 and {record.resolution for record in whole} == set(SIZES)
    for record in whole:
        path = TINY.path(record.path)
        assert plan.candidates.genes(path) == record.choices and path.resolution in SIZES
        assert str(path) == record.path
        size = (path.resolution, path.resolution)
        assert record.macs == build_cost_table(TINY, size).cost(path).macs <= LIMIT
    assert len({record.path for record in whole}) == 40

    def torn() -> History:
        return open_history(tmp_path, {"any": "search"}, resume=True, ranks=SingleProcess())

    with pytest.raises(KeyboardInterrupt):
        run(plan, torn(), Evaluator(stop_after=21))
    evaluator = Evaluator()
    run(plan, torn(), evaluator)
    assert len(evaluator.seen) == 19
    assert History.read(tmp_path).identity() == whole.identity()


def test_children_inherit_and_change_their_resolution() -> None:
    history = History.in_memory()
    run(proposals(MUTATION_PROB=0.3, GENERATIONS=8, MAX_MACS=0), history)
    assert {r.resolution for r in history if r.origin == "mutation"} == set(SIZES)
    first = [record for record in history if record.generation == 1]
    parents = sorted(first, key=lambda record: record.rank_key)[:4]
    crossed = [r for r in history if (r.generation, r.origin) == (2, "crossover")]
    assert crossed and {r.resolution for r in crossed} <= {r.resolution for r in parents}
    shares = choice_frequencies(history)
    before, after = shares[1][-1], shares[8][-1]
    assert set(before) == {f"@{size}" for size in SIZES}
    assert after["@144"] > before["@144"]  # the best ones are found


def test_without_resolutions_nothing_changes() -> None:
    plan = proposals(RESOLUTIONS=[], GENERATIONS=2)
    assert plan.candidates.cardinalities == TINY.cardinalities
    assert plan.constraint.tables == {
        "macs": build_cost_table(TINY, (128, 128)).macs,
        "params": build_cost_table(TINY, (128, 128)).params,
    }
    searcher = plan.build_searcher()
    assert all(len(genes) == TINY.num_layers for genes in searcher.ask())
