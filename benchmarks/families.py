"""Members of a family by table: networks of the front, or the fittest of bands of cost?

    python benchmarks/families.py --truth FILE [--config-file FILE] [--json FILE]

`detnas search --family N` trains N networks of the front that its search found. Where the fitness
does not tell networks apart, cheap ones are the front, and what larger ones would be once trained
is never seen. Here families of both kinds are taken out of the same searches and compared by the
true scores of their members, paired by seed.

As in strategies.py the truth is a SURROGATE, a regression on the choices of a truth set, with
something of each path's own, another one for each seed (--own). Networks may gain with cost (so
many AP for a million multiply-adds), which the fitness sees or does not, as a short supernet, where
large networks have learned less, may not. Fitness is what it sees with an error of each path, half
of its variance common to paths with an operation, as large as a tau asks for; or that error alone.

Families are of the front in even steps, as `Front.spread` takes them; the fittest of each of N
bands, even in the logarithm of the cost between the cheapest and the most expensive candidate; and
the cheapest candidate with the fittest of each of N - 1 bands. The fittest candidate, which is the
one that is recommended, is in all of them. Searches are NSGA-II, and NSGA-II whose survivors are
the fittest of bands, or those that no candidate, as cheap, is above by more than a standard
deviation of all fitnesses.

The hypervolume is that of a search, by true scores: the mean over budgets of the best member
within them, 0 where none is.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from family_rules import (
    SEARCHES,
    SETTINGS,
    World,
    cheapest_and_bands,
    of_bands,
    on_the_front,
    own_deviation,
    searched,
)
from strategies import check_limits, interval, table_parser
from threadpoolctl import threadpool_limits

from detnas_d2.command import run_command
from detnas_d2.config.tools import load_config
from detnas_d2.engine.proposals import Proposals
from detnas_d2.search.objectives import Objectives
from detnas_d2.search.surrogate import Floats, costs, fit_surrogate
from detnas_d2.search.truth import read_truth
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_json

MEASURES = ("hypervolume", "best member", "fittest member", "largest member", "mean cost (M)")
RULES = {"front": on_the_front, "bands": of_bands, "cheapest and bands": cheapest_and_bands}
REFERENCE = ("NSGA-II", "front")


def measured(objectives: Objectives, truth: Floats, fitness: Floats, cost: Floats) -> list[float]:
    """MEASURES of a family, float64[members] each, the cheapest first."""
    return [
        objectives.hypervolume_of(np.stack([truth, cost], axis=1).tolist()),
        float(truth.max()),
        float(truth[fitness.argmax()]),
        float(truth[-1]),
        float(cost.mean() / 1e6),
    ]


def compared(
    proposals: Proposals, world_of: Callable[..., World], count: int, seed: int
) -> list[list[list[list[float]]]]:
    """MEASURES of the families of a seed: [settings, searches, rules, measures].

    Args:
        world_of: gives the world of ``setting`` and ``seed``.
    """
    objectives = proposals.objectives
    assert objectives is not None
    found = []
    for setting in SETTINGS:
        world = world_of(setting=setting, seed=seed)
        searches = []
        for kind in SEARCHES.values():
            paths = searched(kind, proposals, world)
            fitness, cost = world.fitness(paths), costs(world.surrogate.macs, paths) * 1.0
            truth = world.truth(paths)
            families = [rule(objectives, fitness, cost, count) for rule in RULES.values()]
            searches.append([measured(objectives, truth[f], fitness[f], cost[f]) for f in families])
        found.append(searches)
    return found


def main(argv: list[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    truth = read_truth(args.truth)
    sizes = ["SEARCH.OBJECTIVES", "['fitness', 'macs']", "SEARCH.POPULATION", "10"]
    cfg = load_config(args.config_file, [*sizes, "SEARCH.GENERATIONS", "9", *args.opts])
    proposals = Proposals.from_config(cfg)
    truth.check_space(proposals.space)
    check_limits(proposals)
    if not proposals.limits.max_macs or args.seeds < 2 or args.processes < 1 or args.family < 2:
        raise InputError(
            f"SEARCH.MAX_MACS {cfg.SEARCH.MAX_MACS} --seeds {args.seeds} --processes "
            f"{args.processes} --family {args.family}: expected a limit, 2 or more, 1 or more, and "
            "2 or more"
        )
    proposals = replace(proposals, budgets=(float(proposals.limits.max_macs),))
    scores = [network.truth for network in truth.networks]
    choices = [network.choices for network in truth.networks]
    surrogate = fit_surrogate(choices, scores, proposals.costs.macs)
    known = np.array([network.choices for network in truth.networks if not network.band])
    own = own_deviation(truth, surrogate) if args.own is None else args.own
    world_of = partial(World.of, surrogate, own=own, known=known)
    one = partial(compared, proposals, world_of, args.family)
    fork = multiprocessing.get_context("fork")
    with threadpool_limits(1), ProcessPoolExecutor(args.processes, fork) as pool:
        values = np.array(list(pool.map(one, range(args.seeds))))
    found = {
        "truth": args.truth,
        "family": args.family,
        "seeds": args.seeds,
        "own": own,
        "candidates": proposals.searcher.evolution.population
        * proposals.searcher.evolution.generations,
        "settings": {
            str(setting): results(values[:, place]) for place, setting in enumerate(SETTINGS)
        },
    }
    print(report(found))
    if args.json is not None:
        write_json(args.json, found, indent=1)


def results(values: Floats) -> dict[str, Any]:
    """Of a setting, float64[seeds, searches, rules, measures]: for every search and rule the mean
    of each measure, and its difference to the front of NSGA-II, with the 95 % interval.
    """
    reference = values[:, list(SEARCHES).index(REFERENCE[0]), list(RULES).index(REFERENCE[1])]
    return {
        search: {
            rule: {
                measure: {
                    "mean": float(values[:, i, j, k].mean()),
                    "difference": interval(values[:, i, j, k] - reference[:, k]),
                }
                for k, measure in enumerate(MEASURES)
            }
            for j, rule in enumerate(RULES)
        }
        for i, search in enumerate(SEARCHES)
    }


def report(found: dict[str, Any]) -> str:
    """The tables, as Markdown."""
    lines = [
        f"By table: the scores are a surrogate's, not of trainings ({found['truth']}), with a "
        f"deviation of {found['own']:.2f} of each path's own. Families of {found['family']} of "
        f"{found['seeds']} searches of {found['candidates']} candidates; differences to the front "
        f"of {REFERENCE[0]} with 95 % intervals, paired by seed.",
    ]
    for measure in MEASURES:
        lines += ["", f"{measure}:", "", f"| search, members | {' | '.join(found['settings'])} |"]
        lines.append("|---" * (len(found["settings"]) + 1) + "|")
        for search in SEARCHES:
            for rule in RULES:
                cells = [
                    _cell(setting[search][rule][measure], (search, rule) == REFERENCE)
                    for setting in found["settings"].values()
                ]
                lines.append(f"| {search}, {rule} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: dict[str, Any], reference: bool) -> str:
    if reference:
        return f"{value['mean']:.2f}"
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(*value["difference"])


def _parser() -> argparse.ArgumentParser:
    about_config = "its space and SEARCH.MAX_MACS; searches are of 9 generations of 10"
    parser = table_parser(__doc__, about_config)
    parser.add_argument("--family", type=int, default=4, help="networks of a family")
    parser.add_argument(
        "--own",
        type=float,
        help="standard deviation of what a path's score has besides the regression's (default: "
        "with it paths differ as the networks of the truth set do)",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
