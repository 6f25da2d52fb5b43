"""``detnas latency``: milliseconds of a detector on this machine."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any

from detnas_d2.cli.detectors import ARGUMENT_HELP, find_detector
from detnas_d2.utils.errors import InputError

HELP = "measure how long a detector takes for an image on this machine"
EXAMPLE = "detnas latency output/photos --image photo.jpg --threads 1 --runtime pytorch,openvino"

_RUNTIMES = ("pytorch", "onnxruntime", "openvino", "tensorrt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "detector",
        metavar="DIR",
        help=f"{ARGUMENT_HELP}; or the front.yaml of a search of several objectives: its members",
    )
    parser.add_argument(
        "--table",
        default="",
        metavar="FILE",
        help="write a table of all detectors that the config of a search (or its folder, in the "
        "place of DIR) has, by blocks, for SEARCH.LATENCY_TABLE; of one runtime (default: pytorch)",
    )
    parser.add_argument(
        "--detectors",
        type=int,
        default=30,
        help="that the table is checked with, 0: none (default: 30)",
    )
    parser.add_argument(
        "--runtime",
        default="",
        metavar="NAMES",
        help=f"of {', '.join(_RUNTIMES)}, with commas (default: those that are installed)",
    )
    parser.add_argument(
        "--image", default="", metavar="FILE", help="image (default: the first test image)"
    )
    parser.add_argument(
        "--size",
        default="",
        metavar="HxW",
        help="height and width of an image of noise instead, where there are no data",
    )
    parser.add_argument("--runs", type=int, default=30, help="of the detector (default: 30)")
    parser.add_argument(
        "--threads", type=int, default=0, help="of a CPU (default: those that torch takes)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    for name, value, least in (("runs", args.runs, 2), ("threads", args.threads, 0)):
        if value < least:
            raise InputError(f"--{name} {value}: expected {least} or more")
    if args.detectors < 0 or args.detectors == 1:
        raise InputError(f"--detectors {args.detectors}: expected 2 or more, or 0 for no check")
    if args.image and args.size:
        raise InputError("--image and --size: expected one of them")
    size, runtimes = _size(args.size), _runtimes(args.runtime)
    from detnas_d2.programs import latency

    asked = latency.Asked(runtimes, args.image, size, args.runs, args.threads)
    if args.table:
        from detnas_d2.programs import latency_table

        config = latency_table.config_of(args.detector)
        return latency_table.run(config, args.table, asked, detectors=args.detectors)
    if os.path.basename(args.detector) == "front.yaml" and os.path.isfile(args.detector):
        members = latency.front_members(args.detector)
        results = latency.measure([(member["config"], ()) for member in members], asked)
        told = [{**member, **result} for member, result in zip(members, results, strict=True)]
        return {"front": args.detector, "members": told}
    detector = find_detector(args.detector)
    (result,) = latency.measure([(detector.config, detector.opts)], asked)
    # A config alone may lie anywhere.
    kept = latency.keep(detector.config, result) if detector.opts else ""
    return {**result, "kept": kept}


def _size(text: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if text and match is None:
        raise InputError(f"--size {text}: expected HEIGHTxWIDTH in pixels, as in 480x640")
    return (int(match[1]), int(match[2])) if match else None


def _runtimes(text: str) -> tuple[str, ...] | None:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in _RUNTIMES]
    if unknown:
        raise InputError(f"--runtime {unknown[0]}: expected some of {', '.join(_RUNTIMES)}")
    return names or None


def text(result: dict[str, Any]) -> str:
    from detnas_d2.programs import latency, latency_table

    if "table" in result:
        return latency_table.text(result)
    return latency.front_text(result) if "front" in result else latency.text(result)
