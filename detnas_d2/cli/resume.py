"""``detnas resume``: goes on with a run that was stopped."""

from __future__ import annotations

import argparse
import os
from typing import Any

from detnas_d2.cli import search
from detnas_d2.utils.errors import InputError

HELP = "go on with a search that was stopped"
EXAMPLE = "detnas resume output/photos"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="DIR", help="folder of detnas search")
    search.add_launch_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from detnas_d2.recipe.jobs import with_jobs
    from detnas_d2.recipe.record import read_record

    search.check_export(args)
    record = read_record(os.path.abspath(os.path.expanduser(args.run)))
    if record is None:
        raise InputError(
            f"{args.run}: no run of detnas search that has begun (config/recipe.json is missing); "
            "start one by detnas search --data FOLDER --output DIR, or go on with a pipeline by "
            "run_pipeline.py --config-file FILE"
        )
    return search.finished(with_jobs(record, args), args)


text = search.text
