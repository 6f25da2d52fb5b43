"""Parameters and multiply-adds of a detector, part by part; needs no weights and no data."""

from __future__ import annotations

import argparse
import json
import logging

from detnas_d2.analysis.complexity import CONVENTIONS, analyze, as_json
from detnas_d2.config.tools import load_config


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--input-size",
        type=int,
        nargs=2,
        default=(800, 1200),
        metavar=("H", "W"),
        help="image height and width, padded to the neck's divisor (default: 800 1200)",
    )
    parser.add_argument("--proposals", type=int, default=1000, help="regions of the box head")
    parser.add_argument(
        "--convention",
        choices=CONVENTIONS,
        default="macs",
        help="macs: multiply-adds; mmdet: what mmdetection 1.x calls FLOPs (default: macs)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and no table")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides")
    args = parser.parse_args(argv)
    logging.getLogger("detectron2").setLevel(logging.WARNING)
    cfg = load_config(args.config_file, args.opts)
    costs = analyze(
        cfg,
        input_size=tuple(args.input_size),
        proposals=args.proposals,
        convention=args.convention,
    )
    if args.json:
        print(json.dumps(as_json(costs)))
        return
    unit = "multiply-adds" if args.convention == "macs" else "FLOPs (mmdet)"
    print(f"{'part':<20}{'parameters':>14}{unit:>18}")
    for part, cost in costs.items():
        print(f"{part:<20}{cost.params:>14,}{cost.macs:>18,}")
