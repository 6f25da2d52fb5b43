"""Look into a search: how it went, what it chose, how well it ranks, how many calibration images
it needs.

  diagnose.py history output/search
  diagnose.py choices output/search
  diagnose.py resolutions output/search --evaluate
  diagnose.py resolutions output/sizes/seed*/search --output output/sizes/compared
  diagnose.py screening output/mu_0 output/mu_0.1 --plot figure4.svg
  diagnose.py optuna output/search --storage sqlite:///study.db
  diagnose.py fronts --config-file pipeline.yaml --output output/fronts SEEDS 0,1,2,3,4
  diagnose.py fidelity --config-file pipeline.yaml --output output/fidelity
  diagnose.py calibration --config-file search.yaml --sizes 100 500 4000 --paths 20

Most print a table; --json and --plot write files.
"""

from __future__ import annotations

import argparse
import math
import statistics
from typing import Any

from detectron2.utils import comm

from detnas_d2.config.values import COSTS
from detnas_d2.engine import default_argument_parser, run, setup
from detnas_d2.pipeline.stability import calibration_stability
from detnas_d2.programs import fronts, optuna_export, resolutions, screening
from detnas_d2.programs.fidelity import add_arguments, fidelity
from detnas_d2.programs.numbers import write_numbers
from detnas_d2.programs.plots import draw_calibration, draw_choices, draw_history
from detnas_d2.search import History
from detnas_d2.search.diagnostics import (
    choice_frequencies,
    fitness_by_generation,
    pareto_front,
)
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.figures import check_figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    detectron2 = default_argument_parser()
    subparsers = {
        "history": commands.add_parser(
            "history", help="fitness per generation; the fittest candidates at every cost"
        ),
        "choices": commands.add_parser("choices", help="operations chosen per generation"),
        "resolutions": commands.add_parser(
            "resolutions", help="do other image sizes want other architectures?"
        ),
        "screening": commands.add_parser(
            "screening", help="scores of the operations over screenings (Hit-Detector)"
        ),
        "optuna": commands.add_parser(
            "optuna", help="every candidate as a trial of a study of Optuna, for its dashboard"
        ),
        "fidelity": commands.add_parser(
            "fidelity", help="does the fitness rank networks? truth set and report"
        ),
        "fronts": commands.add_parser(
            "fronts",
            help="the front of NSGA-II against that of random search, by hypervolume, over seeds",
            parents=[detectron2],
            add_help=False,
        ),
        "calibration": commands.add_parser(
            "calibration",
            help="fitness and statistics against the number of calibration images",
            parents=[detectron2],
            add_help=False,
        ),
    }
    for name in ("history", "choices", "calibration", "screening", "resolutions"):
        subparsers[name].add_argument("--json", metavar="FILE", help="write the numbers")
    for name in ("history", "choices", "calibration", "screening"):
        subparsers[name].add_argument(
            "--plot", metavar="FILE", help="draw them, .svg, .png or .pdf"
        )
    for name in ("history", "choices"):
        subparsers[name].add_argument("search", help="output folder of the search")
    subparsers["history"].add_argument("--cost", choices=COSTS, default=COSTS[0])
    subparsers["calibration"].add_argument("--sizes", type=int, nargs="+", required=True)
    subparsers["calibration"].add_argument("--paths", type=int, default=20)
    add_arguments(subparsers["fidelity"])
    fronts.add_arguments(subparsers["fronts"])
    optuna_export.add_arguments(subparsers["optuna"])
    resolutions.add_arguments(subparsers["resolutions"])
    screening.add_arguments(subparsers["screening"])
    args = parser.parse_args(argv)
    if getattr(args, "plot", None):
        check_figure(args.plot)
    if args.command == "calibration":
        run(calibration, args)
    else:
        COMMANDS[args.command](args)


def history(args: argparse.Namespace) -> None:
    records = History.read(args.search).records
    generations = fitness_by_generation(records)
    front = pareto_front(records, args.cost)
    if not front:
        raise InputError(f"{args.search}: no candidate has a fitness yet")
    print(f"{'generation':>10}{'evaluated':>11}{'best':>10}{'mean':>10}{'best so far':>13}")
    best = -math.inf
    for number, values in generations.items():
        best = max(best, *values) if values else best
        figures = (max(values), statistics.fmean(values)) if values else (math.nan, math.nan)
        shown = "".join(f"{figure:>10.3f}" for figure in figures)
        print(f"{number:>10}{len(values):>11}{shown}{best:>13.3f}")
    print(f"\n{args.cost:>12}{'fitness':>10}  path: none is fitter at this cost or less")
    for record in front:
        print(f"{getattr(record, args.cost):>12}{record.fitness:>10.3f}  {record.path}")
    chosen = [{key: getattr(r, key) for key in (args.cost, "fitness", "path")} for r in front]
    write(args, {"generations": generations, "front": chosen})
    if args.plot:
        draw_history(records, generations, front, args.cost, args.plot)


def choices(args: argparse.Namespace) -> None:
    frequencies = choice_frequencies(History.read(args.search))
    if not frequencies:
        raise InputError(f"{args.search}: no candidate has been evaluated yet")
    first, last = min(frequencies), max(frequencies)
    print(f"{'layer':<7}{'op':<16}{'generation ' + str(first):>14}{'generation ' + str(last):>16}")
    for layer, shares in enumerate(frequencies[last]):
        for op, share in shares.items():
            before = frequencies[first][layer][op]
            print(f"{layer:<7}{op:<16}{before:>14.2f}{share:>16.2f}")
    write(args, frequencies)
    if args.plot:
        draw_choices(frequencies, args.plot)


def calibration(args: argparse.Namespace) -> None:
    rows = calibration_stability(setup(args), sizes=args.sizes, num_paths=args.paths)
    if not comm.is_main_process():
        return
    columns = [key for key in rows[0] if key != "fitness"]
    print("".join(f"{column:>16}" for column in columns))
    for row in rows:
        print(f"{row['images']:>16}" + "".join(f"{row[c]:>16.4f}" for c in columns[1:]))
    write(args, rows)
    if args.plot:
        draw_calibration(rows, columns[1:], args.plot)


def sizes(args: argparse.Namespace) -> None:
    write(args, resolutions.tell(args))


def screenings(args: argparse.Namespace) -> None:
    write(args, screening.tell(args))


def write(args: argparse.Namespace, value: Any) -> None:
    if args.json:
        write_numbers(args.json, value)


COMMANDS = {
    "history": history,
    "choices": choices,
    "fidelity": fidelity,
    "fronts": fronts.fronts,
    "optuna": optuna_export.export,
    "resolutions": sizes,
    "screening": screenings,
}
