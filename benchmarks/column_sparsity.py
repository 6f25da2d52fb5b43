"""Figure 4 of Hit-Detector: how mu of eq. 4 spreads the scores of the operations that are screened.

Screens the backbone of the demo (12 operations, built-in scenes) without removing any, for each
term and mu and several seeds, and prints

* the spread: standard deviation of the operations' scores over their mean (0: all are equal);
* the agreement of seeds: mean Kendall's tau-b between the scores of two seeds, and how many of the
  four best operations two seeds share.

    python benchmarks/column_sparsity.py --iterations 240 --seeds 3

"sum" is the group lasso on probabilities, which the project does not offer: see
``detnas_d2/search/gradient/objective.py``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from detectron2.config import CfgNode
from scipy.stats import kendalltau

from detnas_d2.config.tools import load_config
from detnas_d2.data import register_datasets
from detnas_d2.engine.defaults import fall_back_to_cpu
from detnas_d2.engine.gradient_search import train_relaxed
from detnas_d2.search.gradient import objective as relaxation

CONFIG = Path(__file__).parents[1] / "configs" / "HitDetector" / "demo" / "screen.yaml"
KEPT = 4


def config(args: argparse.Namespace, mu: float, seed: int, folder: str) -> CfgNode:
    opts: dict[str, object] = {
        "SOLVER.MAX_ITER": args.iterations,
        "HIT_SEARCH.ARCH_START_ITER": args.iterations // 3,
        "HIT_SEARCH.SCREENING.REMOVE_START": args.iterations,
        "HIT_SEARCH.SCREENING.REMOVE_END": args.iterations,
        "HIT_SEARCH.SCREENING.RECORD_PERIOD": args.iterations,
        "HIT_SEARCH.SCREENING.GROUP_SPARSITY": mu,
        "SEED": seed,
        "OUTPUT_DIR": folder,
    }
    cfg = load_config(str(CONFIG))
    cfg.merge_from_list([word for pair in opts.items() for word in pair])
    return cfg


def screened(args: argparse.Namespace, term: str, mu: float, seed: int) -> dict[str, float]:
    """Operation -> score at the end."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = config(args, mu, seed, folder)
        fall_back_to_cpu(cfg)
        register_datasets(cfg)
        torch.manual_seed(seed)
        cfg.HIT_SEARCH.SCREENING.SPARSITY_TERM = term
        step = train_relaxed(cfg, resume=False).step
        return relaxation.scores(step.screening.layers)


def summary(scores: list[dict[str, float]]) -> dict[str, float]:
    spreads = [statistics.stdev(s.values()) / statistics.fmean(s.values()) for s in scores]
    pairs = list(itertools.combinations(scores, 2))
    taus = [kendalltau([a[op] for op in a], [b[op] for op in a]).statistic for a, b in pairs]
    best = [set(sorted(s, key=s.get, reverse=True)[:KEPT]) for s in scores]
    shared = [len(a & b) for a, b in itertools.combinations(best, 2)]
    return {
        "spread": statistics.fmean(spreads),
        "spread_deviation": statistics.stdev(spreads),
        "tau": statistics.fmean(taus),
        "shared_of_4": statistics.fmean(shared),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=3, help="two or more")
    parser.add_argument("--terms", nargs="+", default=["sum", "min", "sparse"])
    parser.add_argument("--mu", type=float, nargs="+", default=[0.01, 0.1])
    parser.add_argument("--output", type=Path, help="append the JSON lines to this file, too")
    args = parser.parse_args()
    relaxation.SPARSITY_TERMS["sum"] = lambda p: relaxation.column_norms(p).sum()
    cases = [("none", 0.0), *itertools.product(args.terms, args.mu)]
    for term, mu in cases:
        start = time.perf_counter()
        name = "sparse" if term == "none" else term
        found = [screened(args, name, mu, seed) for seed in range(args.seeds)]
        line = {"term": term, "mu": mu, **summary(found), "scores": found}
        line["seconds"] = round(time.perf_counter() - start, 1)
        text = json.dumps(line)
        print(text, flush=True)
        if args.output is not None:
            with open(args.output, "a", encoding="utf-8") as file:
                file.write(text + "\n")


if __name__ == "__main__":
    main()
