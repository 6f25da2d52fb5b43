"""``detnas resume``: goes on with a run that was stopped."""

from __future__ import annotations

import argparse
import os
from typing import Any

from detnas_d2.cli import search
from detnas_d2.recipe.places import check_begun

HELP = "go on with a search that was stopped"
EXAMPLE = "detnas resume output/photos"

_INSTEAD = (
    "start one by detnas search --data FOLDER --output DIR, or go on with a pipeline by "
    "run_pipeline.py --config-file FILE"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="DIR", help="folder of detnas search")
    search.add_launch_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    output = os.path.abspath(os.path.expanduser(args.run))
    check_begun(output, args.run, _INSTEAD)
    search.check_export(args)
    from detnas_d2.recipe.jobs import with_jobs
    from detnas_d2.recipe.record import known_record

    return search.finished(with_jobs(known_record(output), args), args)


text = search.text
