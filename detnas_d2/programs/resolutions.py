"""Do other image sizes want other architectures? The best path of each size at all of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode

from detnas_d2.config.resolutions import resolutions_of
from detnas_d2.config.tools import load_config
from detnas_d2.engine.architectures import searched_space
from detnas_d2.engine.checks.data import check_classes
from detnas_d2.engine.defaults import fall_back_to_cpu
from detnas_d2.engine.evolution_search import load_supernet
from detnas_d2.evaluation import CandidateFailed, CandidateRecord
from detnas_d2.evaluation.build import resized_evaluator
from detnas_d2.evaluation.settings import EvaluationSettings, resized_settings
from detnas_d2.programs.networks import CONFIG_FILE
from detnas_d2.programs.plots import draw_sizes
from detnas_d2.programs.size_comparison import FoundPaths, SizeComparison, compare
from detnas_d2.search import History
from detnas_d2.search_space import Path
from detnas_d2.utils.errors import InputError

Fitness = dict[Path, float | None]
"""Path with its resolution -> fitness; None: it failed."""


NETWORKS = 40
"""Random networks that the supernets of several searches score."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "searches",
        nargs="+",
        metavar="SEARCH",
        help="output folder of a search with SEARCH.RESOLUTIONS; several, of a supernet each, are "
        "compared: each other's supernets score what they found, and random networks",
    )
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="score what the search did not, by its supernet on its data",
    )
    add = parser.add_argument
    add("--output", default="", metavar="FOLDER", help="keeps the scores of several searches")
    add("--networks", type=int, default=NETWORKS, help=f"random ones (default: {NETWORKS})")
    add("--plot", default="", metavar="FILE", help="draw the comparison, .svg, .png or .pdf")


def tell(args: argparse.Namespace) -> Any:
    """Prints what one search found at each size, or what several did, see
    :mod:`detnas_d2.programs.size_comparison`; returns it as JSON values.
    """
    if len(args.searches) == 1:
        for name in ("output", "plot"):
            if getattr(args, name):
                raise InputError(f"--{name}: of several searches; expected two folders or more")
        return _tell_one(args.searches[0], evaluate=args.evaluate)
    if not args.output:
        raise InputError("several searches: expected --output FOLDER, which keeps their scores")
    if args.networks < 0:
        raise InputError(f"--networks {args.networks}: expected 0 or more")
    found = compared(args.searches, args.networks, args.output)
    print(found.text())
    if args.plot:
        draw_sizes(found, args.plot)
    return found.as_dict()


def compared(folders: Sequence[str], networks: int, output: str) -> SizeComparison:
    """The comparison of searches, see :func:`detnas_d2.programs.size_comparison.compare`."""
    searches = []
    for folder in folders:
        cfg, _, best = _read(folder)
        space = searched_space(cfg)
        paths = {size: space.path(record.path).at(None) for size, record in best.items()}
        searches.append(FoundPaths(folder, cfg, paths))
    return compare(searches, networks, output, lambda line: print(line, file=sys.stderr))


def _read(folder: str) -> tuple[CfgNode, Sequence[CandidateRecord], dict[int, CandidateRecord]]:
    """Config and candidates of a search, and the best of each resolution.

    Raises:
        InputError: it has none, or no resolutions.
    """
    file = os.path.join(folder, CONFIG_FILE)
    if not os.path.isfile(file):
        raise InputError(f"{folder}: no {CONFIG_FILE}; expected the output folder of a search")
    cfg = load_config(file)
    if not resolutions_of(cfg):
        raise InputError(f"{file}: SEARCH.RESOLUTIONS is []: the search had images of one size")
    records = History.read(folder).records
    best = best_at(records)
    if not best:
        raise InputError(f"{folder}: no candidate has a fitness yet")
    return cfg, records, best


def _tell_one(folder: str, *, evaluate: bool) -> list[dict[str, Any]]:
    """Prints the best path of each resolution with its fitness at all of them."""
    cfg, records, best = _read(folder)
    resolutions, space = resolutions_of(cfg), searched_space(cfg)
    known: Fitness = {space.path(r.path): r.fitness for r in records}
    paths = {size: space.path(record.path) for size, record in best.items()}
    wanted = [path.at(size) for path in paths.values() for size in resolutions]
    missing = list(dict.fromkeys(path for path in wanted if path not in known))
    if evaluate and missing:
        known |= evaluated(cfg, missing)
    rows = [
        {
            "resolution": size,
            "evaluated": sum(record.resolution == size for record in records),
            "macs": best[size].macs,
            "fitness": {other: known.get(path.at(other)) for other in resolutions},
            "path": str(path.at(None)),
        }
        for size, path in paths.items()
    ]
    print(table(rows, resolutions))
    if missing and not evaluate:
        print("\n-: not among the candidates of the search; --evaluate scores them")
    return rows


def best_at(records: Sequence[CandidateRecord]) -> dict[int, CandidateRecord]:
    """Resolution -> the fittest candidate of it, of those that have one."""
    found: dict[int, CandidateRecord] = {}
    for record in sorted((r for r in records if r.fitness is not None), key=lambda r: r.rank_key):
        if record.resolution is not None:
            found.setdefault(record.resolution, record)
    return dict(sorted(found.items()))


def evaluated(cfg: Any, paths: Sequence[Path]) -> Fitness:
    """Fitness of paths as the search of ``cfg`` finds it; nothing is kept."""
    cfg = cfg.clone()
    cfg.defrost()
    fall_back_to_cpu(cfg)
    cfg.SEARCH.IMAGE_CACHE_GIB, cfg.SEARCH.SCORING_WORKERS = 0.0, 0
    EvaluationSettings.from_config(cfg).check()
    check_classes(cfg)
    with resized_evaluator(resized_settings(cfg), load_supernet(cfg)) as evaluator:
        return {
            path: None if isinstance(outcome, CandidateFailed) else outcome.fitness
            for path, outcome in evaluator.evaluate_many(paths)
        }


def table(rows: Sequence[Mapping[str, Any]], resolutions: Sequence[int]) -> str:
    """The rows as text."""
    heads = "".join(f"{f'at {size}':>10}" for size in resolutions)
    lines = [f"{'best at':>8}{'evaluated':>11}{'macs':>13}{heads}  path"]
    for row in rows:
        values = (row["fitness"][size] for size in resolutions)
        cells = "".join(f"{'-':>10}" if v is None else f"{v:>10.3f}" for v in values)
        lines.append(
            f"{row['resolution']:>8}{row['evaluated']:>11}{row['macs']:>13}{cells}  {row['path']}"
        )
    return "\n".join(lines)
