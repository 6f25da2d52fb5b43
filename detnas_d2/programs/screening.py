"""Scores of the operations over screenings: figure 4 of Hit-Detector."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import asdict, dataclass
from typing import Any

from detnas_d2.config.tools import load_config
from detnas_d2.engine.gradient_search import SCREENING_FILE
from detnas_d2.programs.networks import CONFIG_FILE, short_name
from detnas_d2.search.gradient.screening_record import ScreeningRecord, read_screening
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.figures import new_figure, save_figure

_SHOWN = 4  # operations of the paper's figure


@dataclass(frozen=True)
class ScreeningResult:
    """What a screening wrote; ``name``: the folder's, ``mu``: weight of its sparsity term."""

    name: str
    mu: float
    record: ScreeningRecord

    def __str__(self) -> str:
        return f"{self.record.part}, mu {self.mu:g}"

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "mu": self.mu, **asdict(self.record)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="output folders of screenings")
    parser.add_argument(
        "--operations",
        nargs="+",
        metavar="OP",
        help=f"to be drawn in colour (default: the {_SHOWN} best of the last folder)",
    )


def tell(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Prints the last score of every operation in each screening; draws all of them over time."""
    results = [read_result(folder) for folder in args.folders]
    known = list(dict.fromkeys(op for result in results for op in result.record.scores))
    shown = args.operations or list(results[-1].record.kept[:_SHOWN])
    for op in shown:
        if op not in known:
            raise InputError(f"--operations {op}: expected some of {', '.join(known)}")
    print(f"{'operation':<16}" + "".join(f"{result!s:>20}" for result in results))
    for op in known:
        cells = (_last(result.record, op) for result in results)
        print(f"{op:<16}" + "".join(f"{cell:>20}" for cell in cells))
    if args.plot:
        draw(results, shown, args.plot)
    return [result.to_json() for result in results]


def read_result(folder: str) -> ScreeningResult:
    """Reads the folder of a finished screening.

    Raises:
        InputError: it is none, or a file of it does not hold what it should.
    """
    file = os.path.join(folder, SCREENING_FILE)
    if not os.path.isfile(file):
        raise InputError(f"{file} is missing: expected the output folder of a finished screening")
    cfg = load_config(os.path.join(folder, CONFIG_FILE))
    mu = cfg.HIT_SEARCH.SCREENING.GROUP_SPARSITY
    return ScreeningResult(short_name(folder), mu, read_screening(file))


def _last(record: ScreeningRecord, op: str) -> str:
    """An operation's last score, in brackets if it was removed."""
    values = record.scores.get(op, ())
    if not values:
        return "-"
    return f"{values[-1]:.4f}" if op in record.kept else f"({values[-1]:.4f})"


def draw(results: list[ScreeningResult], shown: list[str], file: str) -> None:
    """An axis for each screening: scores over the iterations, the others' in grey."""
    figure, axes = new_figure(len(results))
    records = [result.record for result in results]
    highest = max(max(v, default=0.0) for record in records for v in record.scores.values())
    for result, record, axis in zip(results, records, axes, strict=True):
        for op, values in record.scores.items():
            if op not in shown:
                axis.plot(record.iterations[: len(values)], values, color="lightgray", lw=0.8)
        for number, op in enumerate(shown):
            values = record.scores.get(op, (math.nan,))
            across = record.iterations[: len(values)]
            axis.plot(across, values, color=f"C{number % 10}", lw=1.8, label=op)
        axis.set(xlabel="iteration", ylim=(0, highest * 1.05))
        axis.set_title(str(result), fontsize="medium")
    axes[0].set(ylabel="mean probability over the layers")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False)
    figure.set_size_inches(max(4.5 * min(len(results), 4), 6), figure.get_size_inches()[1] + 0.8)
    save_figure(figure, file)
