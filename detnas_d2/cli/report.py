"""``detnas report``: the page of a run."""

from __future__ import annotations

import argparse
import os
from typing import Any

HELP = "write report.html of a run, one file that needs no network"
EXAMPLE = "detnas report output/cells"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        metavar="DIR",
        help="output folder of detnas search, of a pipeline, of a search or of a training",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from detnas_d2.report import write_report

    file = write_report(args.folder)
    return {"report": file, "bytes": os.path.getsize(file)}


def text(result: dict[str, Any]) -> str:
    return str(result["report"])
