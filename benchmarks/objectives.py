"""What several objectives cost a search besides scoring its candidates.

    python benchmarks/objectives.py [--config-file FILE] [--candidates 1000] [--population 50]

Whole searches with fitness from a table: what the strategy takes for a candidate, with proposals,
limits, dominance, front and hypervolume, and no network. The same for one, two and three
objectives, in turns. Below it, sorting random points of as many objectives by dominance and
crowding, once, as NSGA-II does for parents and children. Processor time of one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from detnas_d2.config.tools import load_config
from detnas_d2.engine.proposals import Proposals
from detnas_d2.evaluation import CandidateRecord
from detnas_d2.search.dominance import crowding_distances, dominance_ranks
from detnas_d2.search.objectives import FrontSoFar
from detnas_d2.utils.timing import in_turns

ROOT = Path(__file__).resolve().parents[1]
OBJECTIVES = (["fitness"], ["fitness", "macs"], ["fitness", "macs", "params"])
POINTS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    search = ROOT / "configs" / "DetNAS" / "demo" / "search.yaml"
    parser.add_argument("--config-file", default=str(search), metavar="FILE", help="of a search")
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--population", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    runs = [partial(search_once, proposals(args, chosen)) for chosen in OBJECTIVES]
    times = in_turns(processor_seconds, runs, args.repeats)
    rows = [
        (", ".join(chosen), f"{1e3 * statistics.median(row) / args.candidates:.3f}")
        for chosen, row in zip(OBJECTIVES, times, strict=True)
    ]
    print(tabulate(rows, headers=("objectives", "ms a candidate"), disable_numparse=True))
    rng = np.random.default_rng(0)
    sorts = [partial(sorted_points, rng.random((POINTS, count))) for count in (2, 3)]
    times = in_turns(processor_seconds, sorts, args.repeats)
    for count, row in zip((2, 3), times, strict=True):
        print(f"sorting {POINTS:,} points of {count} objectives: {statistics.median(row):.3f} s")


def processor_seconds(run: Any) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def proposals(args: argparse.Namespace, objectives: list[str]) -> Proposals:
    generations = -(-args.candidates // args.population)
    sizes = ("SEARCH.POPULATION", args.population, "SEARCH.GENERATIONS", generations)
    return Proposals.from_config(
        load_config(args.config_file, [*sizes, "SEARCH.OBJECTIVES", objectives])
    )


def search_once(found: Proposals) -> None:
    """A search as the driver runs it, with a front after every generation where it has one."""
    searcher = found.build_searcher()
    front = None if found.objectives is None else FrontSoFar(found.objectives)
    while not searcher.done:
        generation, records = searcher.generation, []
        for position, choices in enumerate(searcher.ask()):
            path = str(found.candidates.path(choices))
            digest = hashlib.blake2b(path.encode(), digest_size=4).digest()
            fitness = int.from_bytes(digest, "big") / 2**32
            searcher.tell(choices, fitness)
            costs: dict[str, Any] = found.constraint.costs_of(choices)
            records.append(
                CandidateRecord(
                    index=position,
                    generation=generation,
                    position=position,
                    origin="random",
                    path=path,
                    choices=choices,
                    fitness=fitness,
                    metrics={},
                    **costs,
                    error=None,
                    seconds={},
                    finished="",
                )
            )
        if front is not None:
            front.add(records)
            assert front.hypervolume >= 0


def sorted_points(points: Any) -> None:
    ranks = dominance_ranks(points)
    for rank in range(ranks.max() + 1):
        crowding_distances(points[ranks == rank])


if __name__ == "__main__":
    main()
