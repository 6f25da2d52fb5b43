"""Strategies of a search by table: how far from the best path after how many evaluations.

    python benchmarks/strategies.py --truth FILE [--config-file FILE] [--tau 0.6] [--json FILE]

The table is a SURROGATE, not a measurement of every path: a regression on the choices of a truth
set (networks with scores of their own trainings; `detnas_d2/search/surrogate.py`) gives every path
of the space a score, which is taken for the truth. What a search sees is that truth with an error
of each path, as large as it takes for the tau that the supernet reached on the truth set (--tau
overrides it; 1: no error). That tau was reached against trainings that are noisy themselves; the
surrogate is not, so the error is rather too large.

By default the errors of two paths have nothing to do with each other. Those of a real supernet
have: what it gets wrong about an operation it gets wrong for all paths with it, and no search can
average that away. --shared-error 0.5 makes half of the variance such an error, a sum over layers,
another one for each seed.

The regret is the score of the best path within the limit of the config minus the score of the path
with the highest fitness so far. A surrogate that is a sum over layers flatters strategies that
assume one ("predictor").
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from landscape import Landscape, error_for
from scipy import stats
from threadpoolctl import threadpool_limits

from detnas_d2.command import run_command
from detnas_d2.config.tools import load_config
from detnas_d2.engine.proposals import Proposals
from detnas_d2.search.build import SearcherSettings
from detnas_d2.search.constraints import Limits
from detnas_d2.search.surrogate import Floats, fit_surrogate
from detnas_d2.search.truth import TruthSet, read_truth
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_json

ROOT = Path(__file__).resolve().parents[1]
STRATEGIES = {
    "evolution (paper)": ["SEARCH.STRATEGY", "evolution", "SEARCH.PRESET", "paper"],
    "evolution (release)": ["SEARCH.STRATEGY", "evolution", "SEARCH.PRESET", "release"],
    "random": ["SEARCH.STRATEGY", "random"],
    "regularized": ["SEARCH.STRATEGY", "regularized"],
    "predictor": ["SEARCH.STRATEGY", "predictor"],
}
REFERENCE = "evolution (paper)"
COUNTS = (50, 100, 200, 500, 1000)
RESAMPLES = 2000


def supernet_tau(truth: TruthSet) -> float:
    """Kendall's tau of the supernet on the networks over the range of costs."""
    known = [n for n in truth.networks if n.supernet is not None and not n.band]
    if len(known) < 2:
        raise InputError("the truth set has no fitness of a supernet: name a tau, as in --tau 0.6")
    return float(stats.kendalltau([n.supernet for n in known], [n.truth for n in known]).statistic)


def curve(settings: SearcherSettings, proposals: Proposals, land: Landscape, seed: int) -> Floats:
    """Regret after each generation of a search; the last one's for those that the space lacks."""
    settings = replace(settings, seed=seed)
    searcher = settings.build(proposals.space.cardinalities, proposals.constraint)
    found = []
    while not searcher.done:
        asked = searcher.ask()
        for path, fitness in zip(asked, land.fitness(np.array(asked), seed), strict=True):
            searcher.tell(path, float(fitness))
        best = searcher.best
        assert best is not None
        found.append(best[0])
    found += found[-1:] * (searcher.generations - len(found))
    return land.regret(np.array(found))


def curves(
    strategies: dict[str, SearcherSettings],
    proposals: Proposals,
    land: Landscape,
    seeds: int,
    processes: int,
) -> dict[str, Floats]:
    """Regret of each strategy, float64[seeds, generations]; not a function of `processes`."""
    found = {}
    fork = multiprocessing.get_context("fork")
    with threadpool_limits(1), ProcessPoolExecutor(processes, fork) as pool:
        for name, settings in strategies.items():
            search = partial(curve, settings, proposals, land)
            found[name] = np.array(list(pool.map(search, range(seeds))))
    return found


def interval(values: Floats) -> list[float]:
    """Mean with its 95 % interval (Student), [mean, low, high]."""
    half = float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))
    mean = float(values.mean())
    return [mean, mean - half, mean + half]


def evaluations_needed(
    regret: dict[str, Floats], batch: int, seed: int = 0
) -> dict[str, list[float]]:
    """Evaluations until the mean regret is at most that of the reference at its end.

    In whole generations. With a 95 % interval over seeds, by a bootstrap that draws the same seeds
    for all strategies; infinite if a strategy does not get there.
    """
    seeds, generations = regret[REFERENCE].shape
    drawn = np.random.default_rng(seed).multinomial(seeds, [1 / seeds] * seeds, RESAMPLES) / seeds
    weights = np.concatenate([np.full((1, seeds), 1 / seeds), drawn])
    target = (weights @ regret[REFERENCE])[:, -1:]
    counts = np.append(np.arange(1, generations + 1) * batch, np.inf)
    needed = {}
    for name, values in regret.items():
        reached = np.append(weights @ values <= target + 1e-12, np.ones((len(weights), 1)), axis=1)
        first = counts[reached.argmax(axis=1)]
        low, high = np.quantile(first[1:], [0.025, 0.975], method="inverted_cdf")
        needed[name] = [float(first[0]), float(low), float(high)]
    return needed


def results(regret: dict[str, Floats], batch: int) -> dict[str, Any]:
    """For each strategy: regret, difference to the reference paired by seed, evaluations needed."""
    needed = evaluations_needed(regret, batch)
    found = {}
    for name, values in regret.items():
        places = {
            n: n // batch - 1 for n in COUNTS if not n % batch and n <= batch * values.shape[1]
        }
        found[name] = {
            "regret": {str(n): interval(values[:, i]) for n, i in places.items()},
            "difference": {
                str(n): interval(values[:, i] - regret[REFERENCE][:, i]) for n, i in places.items()
            },
            "evaluations_needed": [x if math.isfinite(x) else None for x in needed[name]],
        }
    return found


def main(argv: list[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    truth = read_truth(args.truth)
    proposals = Proposals.from_config(load_config(args.config_file, args.opts))
    truth.check_space(proposals.space)
    check_limits(proposals)
    if args.seeds < 2 or args.processes < 1 or not 0 <= args.shared_error <= 1:
        raise InputError(
            f"--seeds {args.seeds} --processes {args.processes} --shared-error "
            f"{args.shared_error:g}: expected 2 or more, 1 or more, and a share from 0 to 1"
        )
    choices = [network.choices for network in truth.networks]
    scores = np.array([network.truth for network in truth.networks])
    surrogate = fit_surrogate(choices, scores, proposals.costs.macs)
    over_range = surrogate.scores(np.array([n.choices for n in truth.networks if not n.band]))
    tau = supernet_tau(truth) if args.tau is None else args.tau
    land = Landscape(
        surrogate,
        surrogate.best(proposals.limits.max_macs or math.inf),
        error_for(over_range, tau),
        args.shared_error,
    )
    # Sizes are the presets', whatever the config has.
    strategies = {
        name: SearcherSettings.from_config(load_config("", [*opts, *args.opts]))
        for name, opts in STRATEGIES.items()
    }
    regret = curves(strategies, proposals, land, args.seeds, args.processes)
    batch = strategies[REFERENCE].evolution.population
    found = {
        "truth": args.truth,
        "metric": truth.metric,
        "surrogate": {
            "kind": surrogate.kind,
            "networks": len(scores),
            "r2": surrogate.r2,
            "tau": surrogate.tau,
            "deviation": float(over_range.std(ddof=1)),
        },
        "limit_macs": proposals.limits.max_macs,
        "best": land.best,
        "fitness_tau": tau,
        "error": land.error,
        "shared_error": land.shared,
        "seeds": args.seeds,
        "strategies": results(regret, batch),
    }
    print(report(found, batch * regret[REFERENCE].shape[1]))
    if args.json is not None:
        write_json(args.json, found, indent=1)


def check_limits(proposals: Proposals) -> None:
    """Raises InputError if no path is within the limits, or they are of more than MACs."""
    proposals.check_limits()
    if replace(proposals.limits, max_macs=None) != Limits():
        raise InputError(f"limits {proposals.limits}: expected SEARCH.MAX_MACS alone")


def report(found: dict[str, Any], last: int) -> str:
    """The tables, as Markdown."""
    surrogate, strategies = found["surrogate"], found["strategies"]
    counts = list(strategies[REFERENCE]["regret"])
    error = "no error"
    if found["error"]:
        error = (
            f"an error of standard deviation {found['error']:.2f} (for a tau of "
            f"{found['fitness_tau']:.2f}), {found['shared_error']:.0%} of its variance common to "
            "paths with an operation"
        )
    lines = [
        f"By table: the scores are a surrogate's, not of trainings. It is a regression on "
        f"{surrogate['kind']} of {surrogate['networks']} networks ({found['truth']}); of networks "
        f"that it has not seen it explains R2 {surrogate['r2']:.2f}, in the order of tau "
        f"{surrogate['tau']:.2f}. Standard deviation of its scores of the networks: "
        f"{surrogate['deviation']:.2f}; best path within the limit "
        f"({found['limit_macs'] or 'none'}): {found['best']:.2f}. Fitness is the score with "
        f"{error}.",
        "",
        f"Regret in {found['metric']}, mean and 95 % interval over {found['seeds']} seeds, after "
        "so many evaluations:",
        "",
        *_table("regret", strategies, counts),
        "",
        f"Difference to {REFERENCE}, paired by seed (negative: less regret):",
        "",
        *_table("difference", strategies, counts),
        "",
        f"Evaluations until the mean regret is that of {REFERENCE} after {last}, in whole "
        "generations:",
        "",
        *(
            f"- {name}: {_count(middle, last)} [{_count(low, last)}, {_count(high, last)}]"
            for name, values in strategies.items()
            for middle, low, high in [values["evaluations_needed"]]
        ),
    ]
    return "\n".join(lines)


def _table(key: str, strategies: dict[str, Any], counts: list[str]) -> list[str]:
    lines = [f"| strategy | {' | '.join(counts)} |", "|---" * (len(counts) + 1) + "|"]
    for name, values in strategies.items():
        cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*values[key][count]) for count in counts]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _count(value: float | None, last: int) -> str:
    return f"more than {last}" if value is None else f"{value:.0f}"


def table_parser(description: str | None, about_config: str) -> argparse.ArgumentParser:
    """Options of a comparison by table.

    Args:
        about_config: what is read from the config, for its help.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--truth", required=True, metavar="FILE", help="truth.json of diagnose.py fidelity"
    )
    parser.add_argument(
        "--config-file",
        default=os.path.relpath(ROOT / "configs/DetNAS/demo/search.yaml"),
        help=about_config,
    )
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", help="write the results to this file, too")
    parser.add_argument("opts", nargs="*", help="KEY VALUE overrides")
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = table_parser(__doc__, "its space and SEARCH.MAX_MACS")
    parser.add_argument("--tau", type=float, help="of the fitness (default: the truth set's)")
    parser.add_argument("--shared-error", type=float, default=0.0)
    return parser


if __name__ == "__main__":
    run_command(main)
