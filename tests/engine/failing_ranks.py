"""Two ranks of which one fails: ``python failing_ranks.py RANK KIND`` with KIND input or bug."""

from __future__ import annotations

import argparse
import sys

from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from detnas_d2.command import run_command
from detnas_d2.engine.launching import run
from detnas_d2.utils.errors import InputError


def fail(args: argparse.Namespace) -> None:
    rank, kind = args.opts
    if comm.get_rank() == int(rank):
        raise InputError("SOLVER.X is 3: expected 4") if kind == "input" else KeyError("a bug")
    comm.all_gather(comm.get_rank())  # waits for the other one


if __name__ == "__main__":
    words = ["--num-gpus", "2", *sys.argv[1:]]
    run_command(lambda: run(fail, default_argument_parser().parse_args(words)))
